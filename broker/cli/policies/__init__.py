"""Policies as files: reading, printing, differences."""
