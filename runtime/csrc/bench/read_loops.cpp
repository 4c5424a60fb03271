// Compiled once per instruction set, which the macro names; see CMakeLists.txt.
#include "bench/read_loops.h"

#ifndef COREBOUND_VARIANT
#error "compile with -DCOREBOUND_VARIANT=<name>"
#endif

namespace corebound::bench::COREBOUND_VARIANT {
namespace {

constexpr size_t line_bytes = 64;
constexpr size_t lines_per_turn = 8;

// One cache line; the compiler makes as many registers of it as the instruction set needs.
typedef uint64_t Line __attribute__((vector_size(line_bytes)));

// Adds to `count` what takes `cycles` and cannot start before `word` has arrived.
template <int cycles> inline void follow(uint64_t &count, uint64_t word) {
  const uint64_t one = 1; // in a register: processors add constants without taking a cycle
  count ^= word;
#pragma GCC unroll 16
  for (int i = 1; i < cycles; ++i) {
    asm volatile("add %1, %0" : "+r"(count) : "r"(one));
  }
}

// Reads `streams` equal parts side by side. `ahead` says how many bytes before the load a line is prefetched; 0 leaves
// it to the hardware. With a `pace`, a chain of so many dependent cycles a line follows the loads. It keeps a core from
// issuing loads so far ahead that they take the places of the hardware's own prefetches, which fetch more: on the
// one processor with AMX where this was tried it was worth 1.4 to 1.5 times the bandwidth. `by_line` prefetches each
// line right before its load, into the second-level cache, instead of those of a turn together into the first.
template <int streams, size_t ahead, int pace, bool by_line = false> uint64_t read(const char *data, size_t num_bytes) {
  constexpr size_t turn_bytes = lines_per_turn * line_bytes;
  const size_t part = num_bytes / streams;
  Line sums[2] = {};
  uint64_t count = 0;
  for (size_t at = 0; at < part; at += turn_bytes) {
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) {
      const char *p = data + static_cast<size_t>(s) * part + at;
      if constexpr (ahead > 0 && !by_line) {
#pragma GCC unroll 8
        for (size_t k = 0; k < lines_per_turn; ++k) {
          __builtin_prefetch(p + ahead + k * line_bytes);
        }
      }
#pragma GCC unroll 8
      for (size_t k = 0; k < lines_per_turn; ++k) {
        if constexpr (by_line) {
          __builtin_prefetch(p + ahead + k * line_bytes, 0, 2);
        }
        const Line line = *reinterpret_cast<const Line *>(p + k * line_bytes);
        sums[k % 2] ^= line;
        if constexpr (pace > 0) {
          follow<pace>(count, line[0]);
        }
      }
      asm volatile("" ::: "memory"); // the lines of two streams must not interleave: that costs bandwidth
    }
  }
  const Line sum = sums[0] ^ sums[1];
  uint64_t folded = count;
  for (size_t i = 0; i < line_bytes / sizeof(uint64_t); ++i) {
    folded ^= sum[i];
  }
  return folded;
}

constexpr ReadLoop table[] = {
    {"1 stream", read<1, 0, 0>},
    {"1 stream, prefetch 1 KiB ahead", read<1, 1024, 0>},
    {"1 stream, 6 cycles a line", read<1, 0, 6>},
    {"2 streams", read<2, 0, 0>},
    {"2 streams, 6 cycles a line", read<2, 0, 6>},
    {"2 streams, 7 cycles a line", read<2, 0, 7>},
    {"2 streams, 8 cycles a line", read<2, 0, 8>},
    {"2 streams, 9 cycles a line", read<2, 0, 9>},
    {"2 streams, prefetch 512 B ahead", read<2, 512, 0>},
    {"2 streams, prefetch 512 B ahead, 8 cycles a line", read<2, 512, 8>},
    {"2 streams, prefetch 3 KiB ahead, 6 cycles a line", read<2, 3072, 6>},
    {"2 streams, prefetch 3 KiB ahead, 8 cycles a line", read<2, 3072, 8>},
    {"2 streams, line by line 3 KiB ahead, 6 cycles a line", read<2, 3072, 6, true>},
    {"2 streams, line by line 3 KiB ahead, 7 cycles a line", read<2, 3072, 7, true>},
    {"4 streams", read<4, 0, 0>},
    {"4 streams, prefetch 512 B ahead", read<4, 512, 0>},
};

} // namespace

ReadLoops read_loops() { return {table, static_cast<int>(sizeof(table) / sizeof(table[0]))}; }

} // namespace corebound::bench::COREBOUND_VARIANT
