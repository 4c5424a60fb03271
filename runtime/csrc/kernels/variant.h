// Opens the namespace of the variant that is being compiled. Everything in it but `kernel_set` is in a nested unnamed
// namespace: internal to its file, so that nothing built with this variant's flags can be linked anywhere else.
#pragma once

#ifndef COREBOUND_VARIANT
#error "compile with -DCOREBOUND_VARIANT=<name>"
#endif

#define COREBOUND_BEGIN_VARIANT                                                                                        \
  namespace corebound::kernels::COREBOUND_VARIANT {                                                                    \
  namespace {
#define COREBOUND_END_VARIANT                                                                                          \
  }                                                                                                                    \
  }
