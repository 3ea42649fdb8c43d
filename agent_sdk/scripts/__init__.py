"""Lua of the verbs, as scripts and as function libraries, and the calls that reach it."""
