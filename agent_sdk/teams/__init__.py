"""Teams: the policy of each, and how they stand by it."""
