"""Background work of a replica: reaping, and the health of its store."""
