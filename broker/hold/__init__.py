"""Holds by hand: a lease for a shell, for a time or for a process that runs already."""
