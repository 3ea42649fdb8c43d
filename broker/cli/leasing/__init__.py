"""Requests of the commands: options, refusals, and leases that are kept by hand."""
