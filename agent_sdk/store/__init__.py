"""Connections to the store: URLs, discovery of the primary, retries, the embedded server."""
