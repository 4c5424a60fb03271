// Declares the operator library; each *_ops.cpp file adds its own fragment.
#include "torch_ops/abi.h"

COREBOUND_OPERATORS(m) { (void)m; }
