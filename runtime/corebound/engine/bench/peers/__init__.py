"""Other engines, each in an environment of its own, measured on the same weights and prompts as ours."""
