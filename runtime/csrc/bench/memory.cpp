// The ceiling of decode: how fast pinned threads can read memory that no cache holds.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include <emmintrin.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include "export.h"

namespace {

using Clock = std::chrono::steady_clock;

// One thread's buffer, in huge pages where the system grants them, so that page walks do not lower the ceiling.
class Buffer {
public:
  explicit Buffer(uint64_t num_bytes) : num_bytes_(num_bytes) {
    void *p = ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    data_ = p == MAP_FAILED ? nullptr : static_cast<char *>(p);
    if (data_) {
      (void)::madvise(data_, num_bytes, MADV_HUGEPAGE);
      for (uint64_t i = 0; i < num_bytes; i += 64) { // the first touch places the page beside this thread
        data_[i] = 1;
      }
    }
  }
  ~Buffer() {
    if (data_) {
      ::munmap(data_, num_bytes_);
    }
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  const char *data() const { return data_; }

private:
  char *data_;
  uint64_t num_bytes_;
};

// Reads a multiple of 64 bytes in ascending order. 16 bytes a load outrun any memory, so no wider set is needed.
int read_all(const char *p, uint64_t num_bytes) {
  __m128i acc[4] = {};
  for (uint64_t i = 0; i < num_bytes; i += 64) {
    for (int j = 0; j < 4; ++j) {
      acc[j] = _mm_xor_si128(acc[j], _mm_load_si128(reinterpret_cast<const __m128i *>(p + i + 16 * j)));
    }
  }
  return _mm_cvtsi128_si32(_mm_xor_si128(_mm_xor_si128(acc[0], acc[1]), _mm_xor_si128(acc[2], acc[3])));
}

bool pin_to(int32_t cpu) {
  // Sized by the CPU number: machines may have more than the 1024 of a plain cpu_set_t.
  cpu_set_t *set = CPU_ALLOC(static_cast<size_t>(cpu) + 1);
  const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(cpu) + 1);
  CPU_ZERO_S(bytes, set);
  CPU_SET_S(static_cast<size_t>(cpu), bytes, set);
  const bool done = ::pthread_setaffinity_np(::pthread_self(), bytes, set) == 0;
  CPU_FREE(set);
  return done;
}

struct Thread {
  std::string problem;
  std::vector<Clock::time_point> starts, ends;
  int checksum = 0; // keeps the compiler from dropping the loads
};

void measure(Thread &self, int32_t cpu, uint64_t num_bytes, int num_repetitions, std::barrier<> &together) {
  const bool pinned = pin_to(cpu);
  const Buffer buffer(pinned ? num_bytes : 4096);
  if (!pinned) {
    self.problem = "cannot pin a thread to CPU " + std::to_string(cpu);
  } else if (!buffer.data()) {
    self.problem = "cannot allocate " + std::to_string(num_bytes) + " bytes on CPU " + std::to_string(cpu);
  }
  for (int i = 0; i < num_repetitions; ++i) {
    together.arrive_and_wait(); // a thread with a problem keeps the others from waiting for it
    self.starts.push_back(Clock::now());
    if (self.problem.empty()) {
      self.checksum ^= read_all(buffer.data(), num_bytes);
    }
    self.ends.push_back(Clock::now());
  }
}

} // namespace

// Starts one thread on each of `cpus`, each with a buffer of its own of `bytes_per_thread` (rounded down to 64), and
// reads all of them `num_repetitions` times together. Stores the bandwidth of each repetition, in 10^9 bytes a second
// over all threads, and returns 0; or returns -1 with the reason in `error`.
COREBOUND_API int corebound_bench_memory(const int32_t *cpus, int num_cpus, uint64_t bytes_per_thread,
                                         int num_repetitions, double *gb_per_s, char *error, size_t error_bytes) {
  const uint64_t num_bytes = bytes_per_thread / 64 * 64;
  if (num_cpus < 1 || num_repetitions < 1 || num_bytes == 0) {
    std::snprintf(error, error_bytes, "expected at least one CPU, one repetition and 64 bytes");
    return -1;
  }
  std::vector<Thread> threads(static_cast<size_t>(num_cpus));
  std::barrier<> together(num_cpus);
  {
    std::vector<std::jthread> running;
    for (size_t i = 0; i < threads.size(); ++i) {
      running.emplace_back([&, i] { measure(threads[i], cpus[i], num_bytes, num_repetitions, together); });
    }
  }
  for (const Thread &thread : threads) {
    if (!thread.problem.empty()) {
      std::snprintf(error, error_bytes, "%s", thread.problem.c_str());
      return -1;
    }
  }
  for (int r = 0; r < num_repetitions; ++r) {
    const auto i = static_cast<size_t>(r);
    auto start = threads[0].starts[i], end = threads[0].ends[i];
    for (const Thread &thread : threads) {
      start = std::min(start, thread.starts[i]);
      end = std::max(end, thread.ends[i]);
    }
    const double seconds = std::chrono::duration<double>(end - start).count();
    gb_per_s[r] = static_cast<double>(num_bytes) * num_cpus / seconds / 1e9;
  }
  return 0;
}
