"""Replica's view of the pool, kept up to date by the stream of events."""
