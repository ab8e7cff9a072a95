"""Scans in: geometry, readers, DICOM, integrity of files, `Scan`, and what the machine can hold."""
