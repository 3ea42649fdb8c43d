"""`gpu-broker run`: a command under a lease. The base install suffices for it."""
