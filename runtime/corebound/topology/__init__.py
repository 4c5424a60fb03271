"""Filled by the first module of this package."""
