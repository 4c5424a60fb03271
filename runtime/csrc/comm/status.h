// How the parts of csrc/comm report failure: a code that Python turns into an exception class, and one text.
#pragma once

#include <string>

namespace corebound::comm {

enum class Code : int {
  ok = 0,
  peer_lost = 1,   // a member died or left
  timed_out = 2,   // a member did not come in time
  misuse = 3,      // members disagree, or the caller passed something impossible
  no_space = 4,    // the segment cannot be reserved
  system = 5,      // a system call failed
  unsupported = 6, // this dtype cannot be summed here; another provider may
  busy = 7,        // another thread is inside an operation of the same group
  elsewhere = 8,   // a member abandoned the group because of a failure outside it
};

struct [[nodiscard]] Status {
  Code code = Code::ok;
  std::string text;
  explicit operator bool() const { return code == Code::ok; }
};

} // namespace corebound::comm
