"""The release: what the command prints, and what all hosts of a launch must share."""

__version__ = "0.1.0"
