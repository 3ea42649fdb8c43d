"""The Lua of the verbs, as scripts and as function libraries, and how a call reaches it."""
