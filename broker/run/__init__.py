"""`gpu-broker run`: a command under a lease. It needs the base install only, like its command."""
