// A group of processes on one machine that exchange data through their segments.
//
// Every member calls the same operations in the same order; each kind (all-reduce, all-gather, broadcast, barrier) has
// its own counters and buffers, so kinds may follow each other in any order. An operation of number s uses buffer s
// % 2. A member writes buffer s % 2 again for s + 2 only after every peer has published s + 1 of that kind (for a
// broadcast: has finished s), which it does after it has read all it needs of s. That is the whole protocol.
//
// Data pointers need no alignment and may not overlap a segment. One operation at a time per group; other threads may
// use other groups. After a failure the group stays broken and every call returns the same status.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "comm/reduce.h"
#include "comm/segment.h"
#include "comm/status.h"

namespace corebound::comm {

inline constexpr int max_members = 256;

// Elements of each slice when `num_elements` are cut into `num_slices`: whole cache lines, so that no line has two
// writers; the last slices may be shorter or empty.
size_t slice_elements(size_t num_elements, size_t element_bytes, int num_slices);

// How an all-reduce of one size is done. One-shot: every member reads all the others' data. Two-shot: every member sums
// its own slice, then reads the others' slices. Streaming: copies into the segment bypass the cache.
struct Choice {
  bool two_shot = false;
  bool streaming = false;
};

// `choice` applies to chunks of up to `max_bytes`.
struct Rule {
  size_t max_bytes;
  Choice choice;
};

struct GroupSpec {
  std::string path; // of the own segment
  int rank = 0;
  int size = 0;
  std::vector<int> global_ranks; // for messages, one per member
  size_t chunk_bytes = 0;        // a multiple of 4096; longer data goes in chunks
  double timeout_s = 60;         // default of every operation; infinity is allowed
  bool oversubscribed = false;   // fewer processors than members: give way at once instead of spinning
};

class Group {
public:
  explicit Group(GroupSpec spec);
  ~Group();

  Status create();
  Status attach(int peer, const std::string &path, const uint8_t *token);
  void unlink() { segments_[rank_].unlink(); }
  const uint8_t *token() const { return segments_[rank_].header().token; }

  // A negative `timeout_s` means the group's own.
  Code all_reduce(void *data, size_t num_elements, DType dtype, double timeout_s);
  Code all_gather(const void *in, void *out, size_t num_bytes, double timeout_s); // out: size * num_bytes
  Code broadcast(void *data, size_t num_bytes, int root, double timeout_s);
  Code barrier(double timeout_s);
  // An all-reduce in two halves. After the first, each of the first `num_slices` members holds the sum of its slice in
  // place, and the rest of its `data` is as before; after the second, every member holds what the owners hold then.
  Code reduce_slices(void *data, size_t num_elements, DType dtype, int num_slices, double timeout_s);
  Code gather_slices(void *data, size_t num_elements, DType dtype, int num_slices, double timeout_s);

  // Breaks the group for a reason outside it: members that wait, or call, get Code::elsewhere and read that this one
  // has no answer from rank `culprit` of the launch.
  void abandon(int culprit);

  // Times the choices for several sizes and keeps the fastest; member 0 decides for all. Collective.
  Code probe(double budget_s);
  void set_rules(std::vector<Rule> rules) { rules_ = std::move(rules); }
  const std::vector<Rule> &rules() const { return rules_; }

  const std::string &error() const { return error_; }
  std::string describe() const; // JSON
  int rank() const { return rank_; }
  int size() const { return size_; }
  int max_slices() const; // as many as there are members, unless chunks are tiny

private:
  class Turn;
  // What all waits of one operation share. The clock starts with the first wait that has to give way: an operation that
  // never does so, the usual one, reads no clock.
  struct Wait {
    const char *operation;
    double timeout_s;
    mutable double start_s = -1;
  };

  Counter &line(int member, Line which) const { return segments_[member].header().lines[which]; }
  void publish(Line which, uint64_t number, uint64_t signature);
  Code await(Line which, int member, uint64_t number, const Wait &wait);
  Code await_slowly(Line which, int member, uint64_t number, const Wait &wait);
  static void sleep(Counter &counter, uint64_t number);
  Code inspect(Line which, int member, uint64_t number, const Wait &wait);
  Code check_signature(Line which, int member, uint64_t number, uint64_t signature, const Wait &wait);
  Code fail(Code code, int culprit, const Wait &wait, const std::string &text);
  std::string member_name(int member) const;
  const char *how_it_went(int member) const;

  Code one_shot(char *data, size_t count, DType dtype, uint64_t signature, Choice choice, const Wait &wait);
  Code two_shot(char *data, size_t count, DType dtype, uint64_t signature, Choice choice, const Wait &wait);
  Choice choose(size_t num_bytes) const;
  Code agree(std::vector<Rule> found);
  double time_choice(char *scratch, size_t num_bytes, int num_repeats, Code &code);

  GroupSpec spec_;
  int rank_;
  int size_;
  size_t chunk_bytes_;
  int num_spins_;
  const Arithmetic &arithmetic_;
  std::vector<Segment> segments_; // by member
  uint64_t num_reduces_ = 0, num_gathers_ = 0, num_broadcasts_ = 0, num_barriers_ = 0;
  std::vector<Rule> rules_;
  std::atomic<bool> busy_{false};
  Code broken_ = Code::ok;
  std::string error_;
  double probe_s_ = 0;
};

} // namespace corebound::comm
