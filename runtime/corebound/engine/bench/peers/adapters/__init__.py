"""Scripts that run in other engines' environments, where Corebound is not installed: they import `protocol` only."""
