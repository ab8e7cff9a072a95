"""Results back to a PACS: DICOM segmentations and a structured report for a CT that came as a DICOM series.

This is the only place where what a source says of the patient passes into an output. The packages highdicom and pydicom are
imported only when they are needed.
"""
