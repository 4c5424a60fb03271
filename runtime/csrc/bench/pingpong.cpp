// The floor of an all-reduce: what the hardware needs for processes to swap a payload through shared memory and add it,
// with nothing around it. Each process stores its payload, publishes a flag, waits for the others' flags, and adds
// their payloads to its own. No group, no error handling, no dtype: fp32 additions over the bytes. It shares no code
// with csrc/comm, on purpose.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>

#include <emmintrin.h>
#include <sched.h>

#include "export.h"

namespace {

constexpr size_t flag_stride = 128;
constexpr size_t max_processes = 64;
constexpr int max_spins = 2000;

double now_us() {
  timespec t = {};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
}

__attribute__((target_clones("avx512f", "avx2", "default"))) void add(float *__restrict own,
                                                                      const float *__restrict theirs, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    own[i] += theirs[i];
  }
}

void store(char *to, const char *from, size_t num_bytes, bool streaming) {
  if (!streaming) {
    std::memcpy(to, from, num_bytes);
    return;
  }
  for (size_t i = 0; i < num_bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i *>(to + i), _mm_load_si128(reinterpret_cast<const __m128i *>(from + i)));
  }
  _mm_sfence();
}

} // namespace

// Bytes of zeroed shared memory that every process maps for payloads of `num_bytes`.
COREBOUND_API size_t corebound_bench_floor_bytes(int num_processes, size_t num_bytes) {
  return static_cast<size_t>(num_processes) * (flag_stride + 2 * num_bytes);
}

// Times `num_rounds` rounds into `round_us`. `shared` is page-aligned memory of corebound_bench_floor_bytes, `payload`
// has `num_bytes` (a multiple of 64, aligned to 64). `first_round` continues the count of earlier calls on the same
// memory, from 0. Every process calls it with the same arguments but `rank` and `payload`; there is no timeout. Returns
// 0, or -1 for arguments that cannot be.
COREBOUND_API int corebound_bench_floor(void *shared, int rank, int num_processes, void *payload, size_t num_bytes,
                                        int streaming, int64_t first_round, int64_t num_rounds, double *round_us) {
  if (num_processes < 2 || static_cast<size_t>(num_processes) > max_processes || num_bytes % 64 != 0) {
    return -1;
  }
  char *base = static_cast<char *>(shared);
  const auto flag = [&](int process) -> std::atomic<int64_t> & {
    return *reinterpret_cast<std::atomic<int64_t> *>(base + static_cast<size_t>(process) * flag_stride);
  };
  char *buffers = base + static_cast<size_t>(num_processes) * flag_stride;
  const auto buffer = [&](int process, int64_t round) {
    return buffers + (2 * static_cast<size_t>(process) + static_cast<size_t>(round & 1)) * num_bytes;
  };
  for (int64_t i = 0; i < num_rounds; ++i) {
    const int64_t round = first_round + i + 1;
    const double start = now_us();
    store(buffer(rank, round), static_cast<const char *>(payload), num_bytes, streaming != 0);
    flag(rank).store(round, std::memory_order_release);
    for (int process = 0; process < num_processes; ++process) {
      if (process == rank) {
        continue;
      }
      for (int spin = 0; flag(process).load(std::memory_order_acquire) < round; ++spin) {
        if (spin < max_spins) {
          _mm_pause();
        } else {
          ::sched_yield(); // more processes than processors: the one awaited may need this one
        }
      }
      add(static_cast<float *>(payload), reinterpret_cast<const float *>(buffer(process, round)), num_bytes / 4);
    }
    round_us[i] = now_us() - start;
  }
  return 0;
}
