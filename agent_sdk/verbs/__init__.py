"""Verbs of both clients, each written once: as steps that a client runs in its way."""
