"""What lies on the disk: run folders, whole files, provenance, the table of a sweep. No torch."""
