"""Verbs without the waiting: messages, validation, and the meaning of answers."""
