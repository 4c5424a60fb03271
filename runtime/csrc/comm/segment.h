// One member's shared memory: counters and buffers that the owner writes and every member of the group reads.
//
// The owner creates the file exclusively, locks it, reserves every page, and writes the header. Peers map it after
// checking size and token. Once all have mapped it the name goes away; the memory lives as long as its mappings.
// The lock is a POSIX record lock: the kernel drops it when the owner's process ends in whatever way, zombies included,
// and shows it across PID namespaces. That makes it the proof of life; process ids are only for messages.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/status.h"

namespace corebound::comm {

inline constexpr size_t token_bytes = 16;
// Two cache lines: the adjacent-line prefetcher moves lines in pairs.
inline constexpr size_t separation_bytes = 128;

// What a member publishes. Each has one writer, the owner, and only grows.
enum Line : int { reduce_ready, reduce_done, gather_ready, broadcast_ready, broadcast_done, barrier_ready, num_lines };

struct alignas(separation_bytes) Counter {
  std::atomic<uint64_t> value;
  uint64_t signature[2]; // what the operations of even and odd numbers were called with; written before `value`
  std::atomic<uint32_t> num_sleepers; // members that sleep until `value` changes; the owner wakes them
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(sizeof(Counter) == separation_bytes);

// Why a member no longer takes part: the code, and the rank that caused it in the upper half.
struct alignas(separation_bytes) Departure {
  std::atomic<uint64_t> value;
};
inline constexpr uint64_t departed_in_order = 0xff;

struct Header {
  uint64_t magic;
  uint32_t version;
  uint32_t rank;
  uint32_t size;
  int32_t pid;
  uint64_t chunk_bytes;
  uint8_t token[token_bytes];
  Departure departure;
  Counter lines[num_lines];
};

inline constexpr size_t header_bytes = 4096;
static_assert(sizeof(Header) <= header_bytes);

// Buffers of each kind come in pairs, for operations of even and odd numbers.
enum class BufferKind : int { reduce, gather, broadcast };
inline constexpr int num_buffer_kinds = 3;

constexpr size_t segment_bytes(size_t chunk_bytes) { return header_bytes + 2 * num_buffer_kinds * chunk_bytes; }

class Segment {
public:
  Segment() = default;
  Segment(const Segment &) = delete;
  Segment &operator=(const Segment &) = delete;
  ~Segment() { close(); }

  // Creates the file at `path`, which must not exist, with a random token. `chunk_bytes` is a multiple of 4096.
  Status create(const std::string &path, int rank, int size, size_t chunk_bytes);
  // Maps the segment that member `rank` created with `token`.
  Status attach(const std::string &path, int rank, int size, size_t chunk_bytes, const uint8_t *token);
  // Removes the name; only the creator's call does something.
  void unlink();
  void close();

  bool mapped() const { return base_ != nullptr; }
  Header &header() const { return *reinterpret_cast<Header *>(base_); }
  char *buffer(BufferKind kind, uint64_t number) const {
    return base_ + header_bytes + (2 * static_cast<size_t>(kind) + (number & 1U)) * chunk_bytes_;
  }
  // False once the owner's process is gone. For a peer's segment only.
  bool owner_alive() const;

private:
  Status map(const std::string &path);

  std::string path_; // empty when there is no name to remove
  int fd_ = -1;
  char *base_ = nullptr;
  size_t chunk_bytes_ = 0;
};

} // namespace corebound::comm
