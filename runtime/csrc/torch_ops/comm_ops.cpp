#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(corebound, m) { (void)m; }
