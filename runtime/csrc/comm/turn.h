// What the files that implement Group's operations share.
#pragma once

#include "comm/group.h"

namespace corebound::comm {

// Holds the group for one operation.
class Group::Turn {
public:
  explicit Turn(Group &group) : group_(group), alone_(!group.busy_.exchange(true, std::memory_order_acquire)) {}
  ~Turn() {
    if (alone_) {
      group_.busy_.store(false, std::memory_order_release);
    }
  }
  Turn(const Turn &) = delete;
  Turn &operator=(const Turn &) = delete;
  Code code() const { return alone_ ? group_.broken_ : Code::busy; }

private:
  Group &group_;
  bool alone_;
};

// What an operation was called with, as members compare it.
inline uint64_t signature_of(size_t num_bytes, DType dtype) {
  return (static_cast<uint64_t>(num_bytes) << 4) | static_cast<uint64_t>(dtype);
}

} // namespace corebound::comm
