"""GPUs described by a scenario file, moment by moment."""
