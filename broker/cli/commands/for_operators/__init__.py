"""Commands of operators about what leaves the pool."""
