"""GPUs that a scenario file describes, moment by moment."""
