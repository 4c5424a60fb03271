#include "ccl/wait.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <mutex>
#include <poll.h>
#include <sched.h>

namespace corebound::ccl_binding {

using comm::Code;
using Clock = std::chrono::steady_clock;

namespace {

// Every test moves data, so a wait tests without pause first, and gives way to others of the same core later.
constexpr double kSpinSeconds = 20e-6;
constexpr double kYieldSeconds = 5e-3;
constexpr double kShortPauseSeconds = 1.0;
constexpr timespec kShortPause{0, 50'000};
constexpr timespec kLongPause{0, 500'000};
// Asking the kernel for the sockets costs as much as a test; this often is soon enough.
constexpr double kWatchEverySeconds = 2e-3;
// What a member sent before it ended is still on its way.
constexpr double kGraceSeconds = 0.2;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void pause(double waited_s) {
  if (waited_s < kSpinSeconds)
    return;
  if (waited_s < kYieldSeconds)
    sched_yield();
  else
    nanosleep(waited_s < kShortPauseSeconds ? &kShortPause : &kLongPause, nullptr);
}

} // namespace

std::mutex &progress_mutex() {
  static auto *mutex = new std::mutex;
  return *mutex;
}

int Waiter::ended_member() const {
  std::vector<pollfd> polled;
  polled.reserve(sockets_.size());
  for (int descriptor : sockets_)
    polled.push_back({descriptor, POLLIN | POLLRDHUP, 0});
  if (poll(polled.data(), polled.size(), 0) <= 0)
    return -1;
  for (size_t member = 0; member < polled.size(); ++member)
    // Nothing is ever sent over these, so whatever happens is the end.
    if (polled[member].revents != 0)
      return static_cast<int>(member);
  return -1;
}

Outcome Waiter::wait(std::vector<ccl::event> &events, double timeout_s) {
  const auto start = Clock::now();
  size_t done = 0;
  double next_watch_s = kWatchEverySeconds;
  double give_up_s = timeout_s;
  int culprit = -1;
  try {
    while (true) {
      {
        std::lock_guard lock(progress_mutex());
        while (done < events.size() && events[done].test())
          ++done;
      }
      if (done == events.size())
        return {};
      // Those behind the first make progress by its test too.
      const double waited_s = seconds_since(start);
      if (culprit < 0 && waited_s >= next_watch_s) {
        next_watch_s = waited_s + kWatchEverySeconds;
        culprit = ended_member();
        if (culprit >= 0)
          give_up_s = std::min(give_up_s, waited_s + kGraceSeconds);
      }
      if (waited_s >= give_up_s)
        return culprit >= 0 ? Outcome{Code::peer_lost, "a member's connection ended", culprit, done}
                            : Outcome{Code::timed_out, "not done in time", -1, done};
      pause(waited_s);
    }
  } catch (const std::exception &error) {
    culprit = ended_member();
    return {culprit >= 0 ? Code::peer_lost : Code::system, error.what(), culprit, done};
  }
}

} // namespace corebound::ccl_binding
