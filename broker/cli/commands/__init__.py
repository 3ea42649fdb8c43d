"""One module per command of `gpu-broker`."""
