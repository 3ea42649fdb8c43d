"""Webhooks: the pool's events, delivered to URLs in order and at least once."""
