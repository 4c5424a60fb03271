// Marks the functions of libcorebound.so that ctypes and libcorebound_torch.so call.
#pragma once

#define COREBOUND_API extern "C" __attribute__((visibility("default")))
#define COREBOUND_EXPORT __attribute__((visibility("default")))
