"""Configuration: what was asked for, validated; the only package that reads the process environment."""
