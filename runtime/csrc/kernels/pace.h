// What keeps a core from running far ahead of memory.
//
// A core that issues loads as fast as it can takes the places of the hardware's own prefetches, which fetch more at a
// time. Where that matters, a short chain of dependent cycles behind every cache line, and the line 3 KiB further on
// fetched with it, are worth a third of the bandwidth and more; elsewhere they cost. So it is tried on the weights
// themselves, see Walker::choose_pace.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/variant.h"

COREBOUND_BEGIN_VARIANT

// As far as the hardware reaches within a page, but over its end, where the hardware begins anew.
inline constexpr int64_t ahead_bytes = 3072;

template <bool paced> class Pace {
public:
  // Behind the line at `line`, which the caller has loaded too, with the line `ahead` bytes further on.
  void follow(const char *line, int64_t ahead) {
    if constexpr (paced) {
      __builtin_prefetch(line + ahead, 0, 2);
      uint64_t word;
      std::memcpy(&word, line, sizeof word);
      const uint64_t one = 1; // in a register: processors add constants without taking a cycle
      chain_ ^= word;
#pragma GCC unroll 8
      for (int i = 0; i < 5; ++i) {
        asm volatile("add %1, %0" : "+r"(chain_) : "r"(one));
      }
    }
  }
  // Behind some lines of one stream: lines of two streams must not interleave, which costs bandwidth.
  void turn() { asm volatile("" ::: "memory"); }

private:
  uint64_t chain_ = 0;
};

COREBOUND_END_VARIANT
