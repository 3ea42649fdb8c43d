"""Use of the pool in the past: plain reads of sums, never a verb."""
