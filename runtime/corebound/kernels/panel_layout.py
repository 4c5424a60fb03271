"""The version of the layout that csrc/kernels/panel.h describes. No torch."""

# Files of panels carry it: raise it with every change of what the bytes of a panel mean. A test holds digests of packed
# matrices against it.
LAYOUT_VERSION = 1
