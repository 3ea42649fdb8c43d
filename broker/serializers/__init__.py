"""Leases and devices as JSON rows of the HTTP API."""
