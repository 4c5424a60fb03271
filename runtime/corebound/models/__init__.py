"""Models: one decoder, and one short file per family that describes it. Importing this package imports no torch."""
