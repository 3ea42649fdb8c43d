"""HTTP API: routes, bodies, errors, authentication, streams."""
