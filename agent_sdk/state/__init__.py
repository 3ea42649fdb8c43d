"""Pool as readers see it: plain reads, never a verb."""
