// Messages over connected TCP sockets, for hosts whose ranks' sums are added here: no thread but the caller's, so that
// nobody waits for a processor who has nothing to do with the data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "comm/status.h"

namespace corebound::comm {

// One message, at most one each way on a socket. `label` stands for the call that expects it.
struct Message {
  int socket;
  void *data;
  size_t num_bytes;
  bool is_send;
  size_t num_done = 0; // with the header; set by exchange()
};

struct Exchanged {
  Code code = Code::ok;
  std::string text;
  size_t message = 0; // which one failed
};

// Returns when all messages are sent and received, or one cannot be. What arrives for another call, or with another
// size, is misuse. After a failure the sockets serve nothing more.
Exchanged exchange(std::span<Message> messages, uint64_t label, double timeout_s);

} // namespace corebound::comm
