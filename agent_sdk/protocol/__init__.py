"""The verbs without the waiting: messages, validation, and what an answer means."""
