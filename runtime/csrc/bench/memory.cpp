// The ceiling of decode: how fast pinned threads can read memory that no cache holds, with the best loop there is.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>

#include "bench/pin.h"
#include "bench/read_loops.h"
#include "export.h"
#include "isa/isa.h"

namespace {

using Clock = std::chrono::steady_clock;
using corebound::bench::pin_to;
using corebound::bench::ReadLoops;

constexpr uint64_t page_bytes = 4096;
constexpr uint64_t huge_page_bytes = 2 << 20;
constexpr uint64_t window_bytes = 16 << 20; // what a trial of one loop reads
constexpr int num_trials = 5;

// One thread's buffer, in huge pages where the system grants them, so that page walks do not lower the ceiling.
class Buffer {
public:
  explicit Buffer(uint64_t num_bytes) : mapped_bytes_(num_bytes + huge_page_bytes) {
    mapped_ = ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ != MAP_FAILED) {
      const auto address = reinterpret_cast<uintptr_t>(mapped_);
      data_ = static_cast<char *>(mapped_) + (huge_page_bytes - address % huge_page_bytes) % huge_page_bytes;
      (void)::madvise(data_, num_bytes, MADV_HUGEPAGE);
      for (uint64_t i = 0; i < num_bytes; i += 64) { // the first touch places the page beside this thread
        data_[i] = 1;
      }
    }
  }
  ~Buffer() {
    if (data_) {
      ::munmap(mapped_, mapped_bytes_);
    }
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  const char *data() const { return data_; }

private:
  void *mapped_ = nullptr;
  uint64_t mapped_bytes_;
  char *data_ = nullptr;
};

// The loops of the widest loads that run here. COREBOUND_ISA does not matter: the ceiling is the machine's.
ReadLoops loops_of_this_machine() {
  using corebound::isa::Variant;
  const auto runs = [](Variant variant) { return corebound::isa::missing(variant, corebound::isa::machine()).empty(); };
  if (runs(Variant::avx512)) {
    return corebound::bench::avx512::read_loops();
  }
  return runs(Variant::avx2) ? corebound::bench::avx2::read_loops() : corebound::bench::generic::read_loops();
}

// Bytes of this process that are in huge pages now; 0 where the kernel does not tell.
uint64_t bytes_in_huge_pages() {
  std::ifstream file("/proc/self/smaps_rollup");
  std::string word;
  while (file >> word) {
    if (word == "AnonHugePages:") {
      uint64_t kib = 0;
      file >> kib;
      return kib << 10;
    }
  }
  return 0;
}

struct Thread {
  std::string problem;
  std::vector<Clock::time_point> starts, ends;
  uint64_t checksum = 0; // keeps the compiler from dropping the loads
};

// What the threads share. Thread 0 writes between two barriers, at which the others wait.
struct Team {
  Team(const int32_t *cpus, int num_cpus, uint64_t bytes_per_thread)
      : cpus(cpus), num_bytes(bytes_per_thread), threads(static_cast<size_t>(num_cpus)), together(num_cpus) {}

  // What all of them read together in pass `index`, in 10^9 bytes a second, when each read `bytes`.
  double gb_per_s(size_t index, uint64_t bytes) const {
    auto start = threads[0].starts[index], end = threads[0].ends[index];
    for (const Thread &thread : threads) {
      start = std::min(start, thread.starts[index]);
      end = std::max(end, thread.ends[index]);
    }
    const double seconds = std::chrono::duration<double>(end - start).count();
    return static_cast<double>(bytes) * static_cast<double>(threads.size()) / seconds / 1e9;
  }

  const int32_t *cpus;
  const uint64_t num_bytes;
  const ReadLoops table = loops_of_this_machine();
  std::vector<Thread> threads;
  std::barrier<> together;
  int chosen = 0;
  uint64_t in_huge_pages = 0;
};

// One timed pass over `bytes` of memory, started by all threads at once. A thread with a problem only keeps the others
// from waiting for it.
void pass(Team &team, Thread &self, int loop, const char *data, uint64_t bytes) {
  team.together.arrive_and_wait();
  self.starts.push_back(Clock::now());
  if (self.problem.empty()) {
    self.checksum ^= team.table.loops[loop].read(data, bytes);
  }
  self.ends.push_back(Clock::now());
}

// Lets all threads try every loop in turn and chooses the one whose best trial was fastest. Each trial reads other
// memory than the one before, so that no cache helps.
void choose_loop(Team &team, Thread &self, const char *data) {
  const uint64_t window = std::min(window_bytes, team.num_bytes);
  const uint64_t num_windows = team.num_bytes / window;
  for (int i = 0; i < num_trials * team.table.count; ++i) {
    const uint64_t place = static_cast<uint64_t>(i) % num_windows;
    pass(team, self, i % team.table.count, data + place * window, window);
  }
  team.together.arrive_and_wait();
  if (&self == team.threads.data()) {
    double best = 0;
    for (int i = 0; i < num_trials * team.table.count; ++i) {
      const double rate = team.gb_per_s(static_cast<size_t>(i), window);
      if (rate > best) {
        best = rate;
        team.chosen = i % team.table.count;
      }
    }
    team.in_huge_pages = bytes_in_huge_pages();
  }
  team.together.arrive_and_wait();
  self.starts.clear();
  self.ends.clear();
}

void measure(Team &team, size_t index, int num_repetitions) {
  Thread &self = team.threads[index];
  const int32_t cpu = team.cpus[index];
  const bool pinned = pin_to(cpu);
  const Buffer buffer(pinned ? team.num_bytes : page_bytes);
  if (!pinned) {
    self.problem = "cannot pin a thread to CPU " + std::to_string(cpu);
  } else if (!buffer.data()) {
    self.problem = "cannot allocate " + std::to_string(team.num_bytes) + " bytes on CPU " + std::to_string(cpu);
  }
  choose_loop(team, self, buffer.data());
  for (int i = 0; i < num_repetitions; ++i) {
    pass(team, self, team.chosen, buffer.data(), team.num_bytes);
  }
}

} // namespace

// Starts one thread on each of `cpus`, each with a buffer of its own of `bytes_per_thread` (rounded down to 4096), lets
// them choose the fastest way to read, and reads all of the buffers `num_repetitions` times together. Stores the
// bandwidth of each repetition, in 10^9 bytes a second over all threads, the name of the chosen loop (as long as the
// library lives) and how many bytes of this process were in huge pages, and returns 0; or returns -1 with the reason in
// `error`.
COREBOUND_API int corebound_bench_memory(const int32_t *cpus, int num_cpus, uint64_t bytes_per_thread,
                                         int num_repetitions, double *gb_per_s, const char **loop, uint64_t *huge_bytes,
                                         char *error, size_t error_bytes) {
  const uint64_t num_bytes = bytes_per_thread / page_bytes * page_bytes;
  if (num_cpus < 1 || num_repetitions < 1 || num_bytes == 0) {
    std::snprintf(error, error_bytes, "expected at least one CPU, one repetition and 4096 bytes");
    return -1;
  }
  Team team(cpus, num_cpus, num_bytes);
  {
    std::vector<std::jthread> running;
    for (size_t i = 0; i < team.threads.size(); ++i) {
      running.emplace_back([&team, i, num_repetitions] { measure(team, i, num_repetitions); });
    }
  }
  for (const Thread &thread : team.threads) {
    if (!thread.problem.empty()) {
      std::snprintf(error, error_bytes, "%s", thread.problem.c_str());
      return -1;
    }
  }
  for (int i = 0; i < num_repetitions; ++i) {
    gb_per_s[i] = team.gb_per_s(static_cast<size_t>(i), num_bytes);
  }
  *loop = team.table.loops[team.chosen].name;
  *huge_bytes = team.in_huge_pages;
  return 0;
}
