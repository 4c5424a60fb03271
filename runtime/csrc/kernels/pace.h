// What keeps a core from running far ahead of memory.
//
// A core that issues loads as fast as it can takes the places of the hardware's own prefetches, which fetch more at a
// time. Where that matters, a short chain of dependent cycles behind every cache line, and the line 3 KiB further on
// fetched with it, are worth a third of the bandwidth and more; elsewhere they cost. On Zen 4, one stream with a
// shorter chain and nothing fetched ahead is fastest. So it is tried on the weights themselves, see
// Walker::time_readings. At a pace, results of a few rows go past the caches too (panel_finish.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/variant.h"

COREBOUND_BEGIN_VARIANT

// As far as the hardware reaches within a page, but over its end, where the hardware begins anew.
inline constexpr int64_t ahead_bytes = 3072;

// `cycles` of a chain behind a line, and one for the word itself.
template <bool is_paced, int cycles = 5, bool fetches = is_paced> class Pace {
public:
  static constexpr bool paced = is_paced;

  // Begins to fetch a line.
  void fetch(const char *line) {
    if constexpr (fetches) {
      __builtin_prefetch(line, 0, 2);
    }
  }
  // Behind a line, of which `word` is a part.
  void follow(uint64_t word) {
    if constexpr (paced) {
      const uint64_t one = 1; // in a register: processors add constants without taking a cycle
      chain_ ^= word;
#pragma GCC unroll 8
      for (int i = 0; i < cycles; ++i) {
        asm volatile("add %1, %0" : "+r"(chain_) : "r"(one));
      }
    }
  }
  // Both, for a line that the caller loads too.
  void follow(const char *line, const char *further) {
    if constexpr (paced) {
      fetch(further);
      uint64_t word;
      std::memcpy(&word, line, sizeof word);
      follow(word);
    }
  }
  // Behind some lines of one stream: lines of two streams must not interleave, which costs bandwidth.
  void turn() { asm volatile("" ::: "memory"); }

private:
  uint64_t chain_ = 0;
};

COREBOUND_END_VARIANT
