"""Commands of operators: events to URLs, quotas of teams."""
