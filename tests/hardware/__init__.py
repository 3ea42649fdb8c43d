"""Machines as people have them: what their drivers say, and the real programs on top."""
