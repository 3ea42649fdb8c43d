"""MCP server: leases as tools of an agent, over stdio and over HTTP."""
