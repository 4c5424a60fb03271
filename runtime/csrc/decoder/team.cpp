#include "decoder/team.h"

#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "comm/clock.h"

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

double cpu_s() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Of the calling thread, in the job that it is at.
thread_local double slept_s = 0;

} // namespace

Team::Team(const std::vector<int> &cpus)
    : first_cpu_(cpus.empty() ? 0 : cpus[0]), roster_(static_cast<int>(cpus.size())), desks_(cpus.size()),
      hours_(cpus.size()) {
  for (size_t member = 0; member < desks_.size(); ++member) {
    desks_[member].index = static_cast<int>(member);
  }
  try {
    for (size_t member = 1; member < desks_.size(); ++member) {
      threads_.emplace_back([this, member, cpu = cpus[member]] {
        Narrowed::pin(cpu);
        serve(static_cast<int>(member));
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

void Team::gather() {
  if (desks_.size() > 1) {
    roster_.bring_back(comm::clock_s());
    assign();
  }
}

void Team::run(const std::function<void(int)> &job, bool trial) {
  if (desks_.size() == 1) {
    return job(0);
  }
  const Narrowed narrowed(first_cpu_);
  work_ = &job;
  began_s_ = comm::clock_s();
  job_.value.fetch_add(1); // ordered before the look at the sleepers, so that none is missed
  if (waiting_for_jobs_.load() != 0) {
    wake_all(job_.value);
  }
  work(desks_[0]);
  if (!trial) {
    review();
  }
}

// Who begins late has lost time too: its core was taken while it waited for the job.
void Team::work(Desk &desk) {
  const double began_cpu_s = cpu_s();
  slept_s = 0;
  (*work_)(desk.index);
  desk.hours = {comm::clock_s() - began_s_ - (cpu_s() - began_cpu_s) - slept_s, slept_s};
  barrier();
}

void Team::review() {
  for (size_t member = 0; member < desks_.size(); ++member) {
    hours_[member] = desks_[member].hours;
  }
  const double now_s = comm::clock_s();
  roster_.review(now_s, now_s - began_s_, hours_);
  assign();
}

// Tells the members who takes part in the next job. Those who missed the last one find that they had no part in it,
// whichever number they read.
void Team::assign() {
  const uint32_t job = job_.value.load(std::memory_order_relaxed);
  const std::vector<int> &present = roster_.present();
  size_t index = 0;
  for (size_t member = 0; member < desks_.size(); ++member) {
    Desk &desk = desks_[member];
    const bool takes_part = index < present.size() && present[index] == static_cast<int>(member);
    desk.last_missed.store(takes_part ? job : job + 1, std::memory_order_relaxed);
    if (takes_part) {
      desk.index = static_cast<int>(index++);
    }
  }
}

// Numbers of jobs begin anew at zero.
bool Team::takes_part(const Desk &desk, uint32_t job) {
  return static_cast<int32_t>(job - desk.last_missed.load(std::memory_order_relaxed)) > 0;
}

void Team::serve(int member) {
  Desk &desk = desks_[static_cast<size_t>(member)];
  uint32_t seen = 0;
  while (true) {
    // Who is left out has a core that something else needs.
    const int spins = takes_part(desk, seen + 1) ? spins_between_jobs : 0;
    for (int spin = 0; spin < spins && job_.value.load(std::memory_order_acquire) == seen; ++spin) {
      __builtin_ia32_pause();
    }
    while (job_.value.load(std::memory_order_acquire) == seen) {
      waiting_for_jobs_.fetch_add(1);
      sleep_while(job_.value, seen);
      waiting_for_jobs_.fetch_sub(1);
    }
    seen = job_.value.load(std::memory_order_acquire);
    if (ending_.load()) {
      return;
    }
    if (takes_part(desk, seen)) {
      work(desk);
    }
  }
}

bool Team::arrive(uint32_t &round) {
  const auto size = static_cast<uint32_t>(this->size());
  if (size == 1) {
    return true;
  }
  round = round_.value.load(std::memory_order_relaxed);
  if (arrived_.value.fetch_add(1, std::memory_order_acq_rel) + 1 < size) {
    return false;
  }
  arrived_.value.store(0, std::memory_order_relaxed);
  round_.value.store(round + 1); // ordered before the look at the sleepers
  if (waiting_for_rounds_.load() != 0) {
    wake_all(round_.value);
  }
  return true;
}

void Team::wait_slowly(uint32_t round) {
  const double began_s = comm::clock_s();
  while (round_.value.load(std::memory_order_acquire) == round) {
    waiting_for_rounds_.fetch_add(1);
    sleep_while(round_.value, round);
    waiting_for_rounds_.fetch_sub(1);
  }
  slept_s += comm::clock_s() - began_s;
}

} // namespace corebound::decoder
