"""Commands for programs of agents, and for what hosts them."""
