// Binds the calling thread to one CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include <pthread.h>
#include <sched.h>

namespace corebound::bench {

inline bool pin_to(int32_t cpu) {
  // Sized by the CPU number: machines may have more than the 1024 of a plain cpu_set_t.
  cpu_set_t *set = CPU_ALLOC(static_cast<size_t>(cpu) + 1);
  const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cpu) + 1);
  CPU_ZERO_S(bytes, set);
  CPU_SET_S(static_cast<size_t>(cpu), bytes, set);
  const bool done = ::pthread_setaffinity_np(::pthread_self(), bytes, set) == 0;
  CPU_FREE(set);
  return done;
}

} // namespace corebound::bench
