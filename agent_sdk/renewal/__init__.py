"""Renewal of leases in the background, and the wake-ups of waiters."""
