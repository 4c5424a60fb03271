// Declares the operator library; each *_ops.cpp file adds its own fragment.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(corebound, m) { (void)m; }
