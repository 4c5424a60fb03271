#include "comm/exchange.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstring>
#include <vector>

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "comm/clock.h"

namespace corebound::comm {
namespace {

struct Header {
  uint64_t label;
  uint64_t num_bytes;
};

struct Transfer {
  Message *message;
  Header header;
  size_t total() const { return sizeof(Header) + message->num_bytes; }
  bool done() const { return message->num_done == total(); }
};

// Moves what the socket takes or has without waiting. Returns whether that was anything.
bool move(Transfer &transfer, Exchanged &failure) {
  Message &message = *transfer.message;
  std::array<iovec, 2> parts;
  size_t num_parts = 0;
  if (message.num_done < sizeof(Header)) {
    parts[num_parts++] = {reinterpret_cast<char *>(&transfer.header) + message.num_done,
                          sizeof(Header) - message.num_done};
  }
  const size_t num_moved = message.num_done - std::min(message.num_done, sizeof(Header));
  if (num_moved < message.num_bytes) {
    parts[num_parts++] = {static_cast<char *>(message.data) + num_moved, message.num_bytes - num_moved};
  }
  msghdr call{};
  call.msg_iov = parts.data();
  call.msg_iovlen = num_parts;
  const ssize_t moved = message.is_send ? ::sendmsg(message.socket, &call, MSG_DONTWAIT | MSG_NOSIGNAL)
                                        : ::recvmsg(message.socket, &call, MSG_DONTWAIT);
  if (moved > 0) {
    message.num_done += static_cast<size_t>(moved);
    return true;
  }
  if (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
    return false;
  }
  failure.code = Code::peer_lost;
  failure.text = moved == 0 ? "the connection ended" : std::strerror(errno);
  return false;
}

// Whether what arrives belongs to this call, as far as that is known yet.
bool expected(const Transfer &transfer, uint64_t label) {
  const Message &message = *transfer.message;
  return message.is_send || message.num_done < sizeof(Header) ||
         (transfer.header.label == label && transfer.header.num_bytes == message.num_bytes);
}

// The first message to a member that has closed its end, or `messages.size()`. What it sent before may all be here, and
// would do for this member, but not for the others.
size_t sent_in_vain(std::span<const Message> messages, std::vector<pollfd> &polled) {
  polled.clear();
  for (const Message &message : messages) {
    polled.push_back({message.is_send ? message.socket : -1, POLLRDHUP, 0});
  }
  const size_t none = messages.size();
  if (::poll(polled.data(), polled.size(), 0) <= 0) {
    return none;
  }
  for (size_t i = 0; i < none; ++i) {
    if (polled[i].revents != 0) {
      return i;
    }
  }
  return none;
}

int poll_ms(double left_s) {
  return std::isinf(left_s) ? -1 : static_cast<int>(std::min(std::ceil(left_s * 1e3), static_cast<double>(INT_MAX)));
}

} // namespace

Exchanged exchange(std::span<Message> messages, uint64_t label, double timeout_s) {
  const double start_s = clock_s();
  std::vector<Transfer> transfers;
  transfers.reserve(messages.size());
  for (Message &message : messages) {
    message.num_done = 0;
    transfers.push_back({&message, message.is_send ? Header{label, message.num_bytes} : Header{}});
  }
  std::vector<pollfd> polled;
  polled.reserve(messages.size());
  if (const size_t ended = sent_in_vain(messages, polled); ended < messages.size()) {
    return {Code::peer_lost, "the connection had ended", ended};
  }
  Exchanged result;
  while (true) {
    bool moved = false;
    polled.clear();
    size_t first_open = transfers.size();
    for (size_t i = 0; i < transfers.size(); ++i) {
      Transfer &transfer = transfers[i];
      if (transfer.done()) {
        continue;
      }
      moved |= move(transfer, result);
      if (result.code == Code::ok && !expected(transfer, label)) {
        result.code = Code::misuse;
        result.text = "a member made another call";
      }
      if (result.code != Code::ok) {
        result.message = i;
        return result;
      }
      if (!transfer.done()) {
        first_open = std::min(first_open, i);
        polled.push_back(
            {transfer.message->socket, static_cast<short>(transfer.message->is_send ? POLLOUT : POLLIN), 0});
      }
    }
    if (polled.empty()) {
      return result;
    }
    if (moved) {
      continue;
    }
    const double left_s = timeout_s - (clock_s() - start_s);
    if (left_s <= 0) {
      return {Code::timed_out, "not done in time", first_open};
    }
    if (::poll(polled.data(), polled.size(), poll_ms(left_s)) < 0 && errno != EINTR) {
      return {Code::system, std::string("poll: ") + std::strerror(errno), first_open};
    }
  }
}

} // namespace corebound::comm
