// A team of threads that walks one job together: one wake-up for a whole step of the model, then barriers.
//
// The caller is member 0; the others are pinned to a CPU each and sleep between jobs. A barrier spins for as long as
// members at work differ, then sleeps, so that a team whose cores others need too stays useful; who holds up the others
// because its core has other work is left out of some jobs, see roster.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "decoder/roster.h"

namespace corebound::decoder {

class Team {
public:
  // Members 1 and up run on `cpus[1]` and up, whoever calls run() on cpus[0] until it returns; -1 leaves one where it
  // is.
  explicit Team(const std::vector<int> &cpus);
  ~Team();
  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  // Decides who takes part in the next job. Not called, it is who took part in the last one, or fewer.
  void gather();
  // Members that take part in the job that is going on, or else in the next one.
  int size() const { return static_cast<int>(roster_.present().size()); }
  // Every one of these calls `job(index)`, with indices from 0 to size() - 1; returns when all have. Not to be called
  // by two threads at once. Nobody is left out for a job that is a `trial`.
  void run(const std::function<void(int)> &job, bool trial = false);
  // Returns when every member has called it. `while_waiting` is called now and then until then.
  template <class F> void barrier(F &&while_waiting);
  void barrier() {
    barrier([] {});
  }

private:
  struct alignas(128) Line {
    std::atomic<uint32_t> value{0};
  };

  // What a job needs to know of a member. It takes part in those after the job `last_missed`, which is kept close to
  // the last job of all, as numbers begin anew at zero: who wakes late may see numbers of jobs that are over, and is to
  // find that it had no part in them.
  struct alignas(128) Desk {
    std::atomic<uint32_t> last_missed{0};
    int index = 0;
    Hours hours;
  };

  void serve(int member);
  void work(Desk &desk);
  void review();
  void assign();
  static bool takes_part(const Desk &desk, uint32_t job);
  void end();
  bool arrive(uint32_t &round);
  void wait_slowly(uint32_t round);

  const int first_cpu_;
  Roster roster_;
  std::vector<Desk> desks_;
  std::vector<Hours> hours_; // of all desks
  Line job_, arrived_, round_;
  std::atomic<int> waiting_for_jobs_{0}, waiting_for_rounds_{0};
  std::atomic<bool> ending_{false};
  const std::function<void(int)> *work_ = nullptr;
  double began_s_ = 0; // the job
  std::vector<std::jthread> threads_;
};

template <class F> void Team::barrier(F &&while_waiting) {
  uint32_t round = 0;
  if (arrive(round)) {
    return;
  }
  constexpr int num_spins = 2000;
  for (int spin = 0; spin < num_spins; ++spin) {
    if (round_.value.load(std::memory_order_acquire) != round) {
      return;
    }
    if (spin % 64 == 0) {
      while_waiting();
    }
    __builtin_ia32_pause();
  }
  wait_slowly(round);
}

// Panels of one matrix, handed out to members: each has a run of neighbours, which it reads as one stream, and who has
// finished takes from the others. So a member that loses its core for a while delays one panel, not its whole run.
class Shares {
public:
  explicit Shares(int num_members) : lines_(static_cast<size_t>(num_members)) {}

  // To so many members, by one of them, before a barrier that precedes take().
  void deal(int64_t count, int members) {
    for (int64_t m = 0; m < static_cast<int64_t>(lines_.size()); ++m) {
      lines_[static_cast<size_t>(m)].end = m < members ? count * (m + 1) / members : 0;
      lines_[static_cast<size_t>(m)].next.store(m < members ? count * m / members : 0, std::memory_order_relaxed);
    }
  }

  struct Run {
    int64_t first, count;
  };

  // The next index for a member, or -1.
  int64_t take(int member) {
    const Run run = take(member, 1);
    return run.count > 0 ? run.first : -1;
  }

  // Up to `most` neighbours, fewer towards the end so that members finish together; none when all are taken.
  Run take(int member, int64_t most) {
    const auto members = static_cast<int>(lines_.size());
    for (int step = 0; step < members; ++step) {
      Line &line = lines_[static_cast<size_t>((member + step) % members)];
      int64_t next = line.next.load(std::memory_order_relaxed);
      while (next < line.end) {
        const int64_t count = std::clamp<int64_t>((line.end - next) / 2, 1, most);
        if (line.next.compare_exchange_weak(next, next + count, std::memory_order_relaxed)) {
          return {next, count};
        }
      }
    }
    return {0, 0};
  }

private:
  struct alignas(128) Line {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Line> lines_;
};

} // namespace corebound::decoder
