"""Commands of `gpu-broker`, one module each."""
