"""GPUs through nvidia-smi."""
