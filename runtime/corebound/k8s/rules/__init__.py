"""Rules that no schema holds: what the operator, Pod Security, the CPU manager and our own launches need."""
