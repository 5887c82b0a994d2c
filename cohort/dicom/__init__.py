"""DICOM: from a file to what a table may know, and to what a screen would show."""
