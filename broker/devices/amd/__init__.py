"""GPUs of AMD, read from the kernel's files: `/sys`, `/proc` and `/dev/dri`."""
