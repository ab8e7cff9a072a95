"""Reads scans: geometry, file and DICOM readers, integrity of files, memory, and `Scan`; writes images."""
