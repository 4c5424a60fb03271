"""Predicts what a model takes on a machine, from its sizes and the machine's measured ceilings. Needs no torch."""
