#include "decoder/team.h"

#include <climits>

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace corebound::decoder {
namespace {

// Between steps the others wait for Python, which takes a few hundred microseconds.
constexpr int spins_between_jobs = 20000;

void sleep_while(std::atomic<uint32_t> &value, uint32_t seen) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t *>(&value), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t> &value) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t *>(&value), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Threads that the caller starts elsewhere inherit its CPUs, so it keeps the narrow set no longer than a job.
class Narrowed {
public:
  explicit Narrowed(int cpu) {
    changed_ = ::pthread_getaffinity_np(::pthread_self(), sizeof before_, &before_) == 0;
    if (changed_) {
      pin(cpu);
    }
  }
  ~Narrowed() {
    if (changed_) {
      ::pthread_setaffinity_np(::pthread_self(), sizeof before_, &before_);
    }
  }
  Narrowed(const Narrowed &) = delete;
  Narrowed &operator=(const Narrowed &) = delete;

  // Where the CPU is not allowed any more, the thread goes on where it may.
  static void pin(int cpu) {
    if (cpu < 0) {
      return;
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    ::pthread_setaffinity_np(::pthread_self(), sizeof set, &set);
  }

private:
  cpu_set_t before_;
  bool changed_ = false;
};

} // namespace

Team::Team(const std::vector<int> &cpus)
    : size_(static_cast<int>(cpus.size())), first_cpu_(cpus.empty() ? 0 : cpus[0]) {
  try {
    for (int member = 1; member < size_; ++member) {
      threads_.emplace_back([this, member, cpu = cpus[static_cast<size_t>(member)]] {
        Narrowed::pin(cpu);
        serve(member);
      });
    }
  } catch (...) { // those that run would wait for ever, and their end is waited for
    end();
    throw;
  }
}

Team::~Team() { end(); }

void Team::end() {
  ending_.store(true);
  job_.value.fetch_add(1, std::memory_order_release);
  wake_all(job_.value);
}

void Team::run(const std::function<void(int)> &job) {
  if (size_ == 1) {
    return job(0);
  }
  const Narrowed narrowed(first_cpu_);
  work_ = &job;
  job_.value.fetch_add(1); // ordered before the look at the sleepers, so that none is missed
  if (sleepers_.load() != 0) {
    wake_all(job_.value);
  }
  job(0);
  barrier();
}

void Team::serve(int member) {
  uint32_t seen = 0;
  while (true) {
    for (int spin = 0; spin < spins_between_jobs && job_.value.load(std::memory_order_acquire) == seen; ++spin) {
      __builtin_ia32_pause();
    }
    while (job_.value.load(std::memory_order_acquire) == seen) {
      sleepers_.fetch_add(1);
      sleep_while(job_.value, seen);
      sleepers_.fetch_sub(1);
    }
    ++seen;
    if (ending_.load()) {
      return;
    }
    (*work_)(member);
    barrier();
  }
}

bool Team::arrive(uint32_t &round) {
  if (size_ == 1) {
    return true;
  }
  round = round_.value.load(std::memory_order_relaxed);
  if (arrived_.value.fetch_add(1, std::memory_order_acq_rel) + 1 < static_cast<uint32_t>(size_)) {
    return false;
  }
  arrived_.value.store(0, std::memory_order_relaxed);
  round_.value.store(round + 1); // ordered before the look at the sleepers
  if (sleepers_.load() != 0) {
    wake_all(round_.value);
  }
  return true;
}

void Team::wait_slowly(uint32_t round) {
  while (round_.value.load(std::memory_order_acquire) == round) {
    sleepers_.fetch_add(1);
    sleep_while(round_.value, round);
    sleepers_.fetch_sub(1);
  }
}

} // namespace corebound::decoder
