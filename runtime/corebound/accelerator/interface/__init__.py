"""The parts of the accelerator interface: a file for each group of methods, joined in `base.AbstractAccelerator`."""
