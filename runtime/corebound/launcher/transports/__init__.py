"""Ways to start one agent on each node of a plan."""
