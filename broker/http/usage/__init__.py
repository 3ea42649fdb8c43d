"""Use over HTTP: its sums by group, and finished leases."""
