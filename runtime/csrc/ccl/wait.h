// Waits for oneCCL's operations, which know no timeout and no dead peer: polls them, a clock, and the members' sockets.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include <oneapi/ccl.hpp>

#include "comm/status.h"

namespace corebound::ccl_binding {

struct Outcome {
  comm::Code code = comm::Code::ok;
  std::string text;
  int culprit = -1;
  size_t num_done = 0; // how many of the events had ended, in their order
};

// Held around every call into oneCCL that moves data: its queues belong to the whole process.
std::mutex &progress_mutex();

class Waiter {
public:
  explicit Waiter(int num_members) : sockets_(static_cast<size_t>(num_members), -1) {}
  void watch(const int *sockets) { sockets_.assign(sockets, sockets + sockets_.size()); }
  // Returns when all events are done, `timeout_s` is over, or a member's socket has ended.
  Outcome wait(std::vector<ccl::event> &events, double timeout_s);
  // The first member whose socket has ended, -1 if none has.
  int ended_member() const;

private:
  std::vector<int> sockets_;
};

} // namespace corebound::ccl_binding
