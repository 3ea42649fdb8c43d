"""Pages that teach coding agents, in the form of agentskills.io."""
