// Monotonic seconds, for timeouts and probes.
#pragma once

#include <ctime>

namespace corebound::comm {

inline double clock_s() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

} // namespace corebound::comm
