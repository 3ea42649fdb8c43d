"""Reports of the past: use, sizes, finished leases, and files of them."""
