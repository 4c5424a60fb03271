// How long a cache line takes from one core to another: two pinned threads pass a number to and fro.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <thread>

#include <emmintrin.h>
#include <sched.h>

#include "bench/pin.h"
#include "export.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int max_spins = 2000;
constexpr int64_t gone = -1;

struct alignas(128) Line {
  std::atomic<int64_t> value{0};
};

// Waits until `line` holds `wanted`; returns false when the other side has gone.
bool wait_for(const std::atomic<int64_t> &line, int64_t wanted) {
  for (int spin = 0;; ++spin) {
    const int64_t found = line.load(std::memory_order_acquire);
    if (found == wanted) {
      return true;
    }
    if (found == gone) {
      return false;
    }
    if (spin < max_spins) {
      _mm_pause();
    } else {
      ::sched_yield(); // both threads may have to share one processor
    }
  }
}

struct Exchange {
  Line ping, pong;
  int64_t last; // the number of the last round trip
};

void answer(Exchange &exchange, int32_t cpu, std::string &problem) {
  if (!corebound::bench::pin_to(cpu)) {
    problem = "cannot pin a thread to CPU " + std::to_string(cpu);
    exchange.pong.value.store(gone, std::memory_order_release);
    return;
  }
  for (int64_t i = 1; i <= exchange.last && wait_for(exchange.ping.value, i); ++i) {
    exchange.pong.value.store(i, std::memory_order_release);
  }
}

// Stores the nanoseconds of one way, the mean over each block of round trips.
void ask(Exchange &exchange, int32_t cpu, int num_blocks, int trips_per_block, double *one_way_ns,
         std::string &problem) {
  if (!corebound::bench::pin_to(cpu)) {
    problem = "cannot pin a thread to CPU " + std::to_string(cpu);
    exchange.ping.value.store(gone, std::memory_order_release);
    return;
  }
  int64_t trip = 0;
  for (int block = 0; block < num_blocks; ++block) {
    const auto start = Clock::now();
    for (int i = 0; i < trips_per_block; ++i) {
      exchange.ping.value.store(++trip, std::memory_order_release);
      if (!wait_for(exchange.pong.value, trip)) {
        return;
      }
    }
    const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    one_way_ns[block] = ns / trips_per_block / 2;
  }
}

} // namespace

// Measures the way of a cache line between two CPUs: stores the nanoseconds of one way for each of `num_blocks` blocks
// of `trips_per_block` round trips, and returns 0; or returns -1 with the reason in `error`.
COREBOUND_API int corebound_bench_latency(int32_t cpu, int32_t other_cpu, int num_blocks, int trips_per_block,
                                          double *one_way_ns, char *error, size_t error_bytes) {
  if (num_blocks < 1 || trips_per_block < 1 || cpu == other_cpu) {
    std::snprintf(error, error_bytes, "expected two different CPUs, one block and one round trip");
    return -1;
  }
  Exchange exchange;
  exchange.last = static_cast<int64_t>(num_blocks) * trips_per_block;
  std::string problem, other_problem;
  {
    std::jthread other([&] { answer(exchange, other_cpu, other_problem); });
    std::jthread self([&] { ask(exchange, cpu, num_blocks, trips_per_block, one_way_ns, problem); });
  }
  if (!problem.empty() || !other_problem.empty()) {
    std::snprintf(error, error_bytes, "%s", (problem.empty() ? other_problem : problem).c_str());
    return -1;
  }
  return 0;
}
