"""Leases as their holders see them, and the blocks that hold them."""
