// Loops that read memory as fast as one core can. Which of them is fastest differs by processor: it depends on what the
// hardware prefetchers do by themselves and on how many cache lines a core can have on their way.
#pragma once

#include <cstddef>
#include <cstdint>

namespace corebound::bench {

struct ReadLoop {
  const char *name;
  // Reads `num_bytes` (a multiple of 4096), aligned to 64. The result only keeps the loads from being dropped.
  uint64_t (*read)(const char *data, size_t num_bytes);
};

struct ReadLoops {
  const ReadLoop *loops;
  int count;
};

namespace generic {
ReadLoops read_loops();
}
namespace avx2 {
ReadLoops read_loops();
}
namespace avx512 {
ReadLoops read_loops();
}

} // namespace corebound::bench
