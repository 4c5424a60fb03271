// The C functions over Group that ctypes and the torch operators call.
//
// Groups are named by handles, so that a call after close is an error and no wild pointer. Every function returns 0 or
// a Code; corebound_comm_error() then has the text for the calling thread.
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>

#include "comm/api.h"
#include "comm/group.h"
#include "comm/report.h"

namespace corebound::comm {
namespace {

constexpr int64_t num_slots = 4096;
struct Slot {
  std::atomic<Group *> group{nullptr};
  int64_t generation = 0;
};
std::array<Slot, num_slots> slots;
std::mutex slots_mutex; // for opening and closing; calls only read

thread_local std::string last_error;

int report(const Status &status) { return report(status.code, status.text); }

Group *find(int64_t handle) {
  if (handle <= 0) {
    return nullptr;
  }
  Slot &slot = slots[static_cast<size_t>(handle % num_slots)];
  return slot.generation == handle / num_slots ? slot.group.load(std::memory_order_acquire) : nullptr;
}

int unknown() { return report(Code::misuse, "shm: the group is closed"); }

int finish(const Group &group, Code code) {
  if (code == Code::ok) [[likely]] {
    return 0;
  }
  if (code == Code::busy) {
    return report(code, "shm: another thread is inside an operation of the same group");
  }
  if (code == Code::unsupported) {
    return report(code, "shm all_reduce: cannot sum this dtype");
  }
  return report(code, group.error());
}

} // namespace

int report(Code code, std::string text) {
  last_error = std::move(text);
  return static_cast<int>(code);
}

} // namespace corebound::comm

using namespace corebound::comm;

const char *corebound_comm_error(void) { return last_error.c_str(); }

size_t corebound_comm_segment_bytes(size_t chunk_bytes) { return segment_bytes(chunk_bytes); }

int corebound_comm_open(const char *path, int rank, int size, const int *global_ranks, size_t chunk_bytes,
                        double timeout_s, int oversubscribed, int64_t *handle, uint8_t *token) {
  if (size < 2 || size > max_members || rank < 0 || rank >= size || chunk_bytes == 0 || chunk_bytes % 4096 != 0) {
    return report(Code::misuse, "shm: expected 2 to " + std::to_string(max_members) +
                                    " members and chunks of whole pages, found " + std::to_string(size) +
                                    " members, chunks of " + std::to_string(chunk_bytes) + " bytes");
  }
  GroupSpec spec;
  spec.path = path;
  spec.rank = rank;
  spec.size = size;
  spec.global_ranks.assign(global_ranks, global_ranks + size);
  spec.chunk_bytes = chunk_bytes;
  spec.timeout_s = timeout_s;
  spec.oversubscribed = oversubscribed != 0;
  auto group = std::make_unique<Group>(std::move(spec));
  if (Status status = group->create(); !status) {
    return report(status);
  }
  std::memcpy(token, group->token(), token_bytes);
  const std::lock_guard lock(slots_mutex);
  for (int64_t i = 0; i < num_slots; ++i) {
    Slot &slot = slots[static_cast<size_t>(i)];
    if (slot.group.load() == nullptr) {
      slot.generation += 1;
      slot.group.store(group.release(), std::memory_order_release);
      *handle = slot.generation * num_slots + i;
      return 0;
    }
  }
  return report(Code::misuse, "shm: too many open groups");
}

int corebound_comm_attach(int64_t handle, int peer, const char *path, const uint8_t *token) {
  Group *group = find(handle);
  return group ? report(group->attach(peer, path, token)) : unknown();
}

int corebound_comm_unlink(int64_t handle) {
  Group *group = find(handle);
  if (!group) {
    return unknown();
  }
  group->unlink();
  return 0;
}

int corebound_comm_probe(int64_t handle, double budget_s) {
  Group *group = find(handle);
  return group ? finish(*group, group->probe(budget_s)) : unknown();
}

int corebound_comm_set_choice(int64_t handle, int two_shot, int streaming) {
  Group *group = find(handle);
  if (!group) {
    return unknown();
  }
  group->set_rules({{SIZE_MAX, {two_shot != 0, streaming != 0}}});
  return 0;
}

int corebound_comm_describe(int64_t handle, char *text, size_t text_bytes) {
  Group *group = find(handle);
  if (!group) {
    return unknown();
  }
  std::snprintf(text, text_bytes, "%s", group->describe().c_str());
  return 0;
}

int corebound_comm_close(int64_t handle) {
  const std::lock_guard lock(slots_mutex);
  Group *group = find(handle);
  if (group) {
    slots[static_cast<size_t>(handle % num_slots)].group.store(nullptr);
    delete group;
  }
  return 0;
}

int corebound_comm_all_reduce(int64_t handle, void *data, int64_t num_elements, int dtype, double timeout_s) {
  Group *group = find(handle);
  return group ? finish(*group, group->all_reduce(data, static_cast<size_t>(num_elements), static_cast<DType>(dtype),
                                                  timeout_s))
               : unknown();
}

int corebound_comm_all_gather(int64_t handle, const void *in, void *out, int64_t num_bytes, double timeout_s) {
  Group *group = find(handle);
  return group ? finish(*group, group->all_gather(in, out, static_cast<size_t>(num_bytes), timeout_s)) : unknown();
}

int corebound_comm_broadcast(int64_t handle, void *data, int64_t num_bytes, int root, double timeout_s) {
  Group *group = find(handle);
  if (!group) {
    return unknown();
  }
  if (root < 0 || root >= group->size()) {
    return report(Code::misuse, "shm broadcast: root " + std::to_string(root) + " is not a member");
  }
  return finish(*group, group->broadcast(data, static_cast<size_t>(num_bytes), root, timeout_s));
}

namespace {

// Every owner of a slice is a member, and a buffer holds at least one cache line of each slice.
bool can_slice(const Group &group, int num_slices) { return num_slices >= 1 && num_slices <= group.max_slices(); }

int cannot_slice(int num_slices) {
  return report(Code::misuse, "shm all_reduce: the group cannot own " + std::to_string(num_slices) + " slices");
}

} // namespace

int corebound_comm_reduce_slices(int64_t handle, void *data, int64_t num_elements, int dtype, int num_slices,
                                 double timeout_s) {
  Group *group = find(handle);
  if (!group) {
    return unknown();
  }
  if (!can_slice(*group, num_slices)) {
    return cannot_slice(num_slices);
  }
  return finish(*group, group->reduce_slices(data, static_cast<size_t>(num_elements), static_cast<DType>(dtype),
                                             num_slices, timeout_s));
}

int corebound_comm_gather_slices(int64_t handle, void *data, int64_t num_elements, int dtype, int num_slices,
                                 double timeout_s) {
  Group *group = find(handle);
  if (!group) {
    return unknown();
  }
  if (!can_slice(*group, num_slices)) {
    return cannot_slice(num_slices);
  }
  return finish(*group, group->gather_slices(data, static_cast<size_t>(num_elements), static_cast<DType>(dtype),
                                             num_slices, timeout_s));
}

int64_t corebound_comm_slice_elements(int64_t num_elements, int dtype, int num_slices) {
  return static_cast<int64_t>(
      slice_elements(static_cast<size_t>(num_elements), element_bytes(static_cast<DType>(dtype)), num_slices));
}

int corebound_comm_abandon(int64_t handle, int culprit) {
  Group *group = find(handle);
  if (!group) {
    return unknown();
  }
  group->abandon(culprit);
  return 0;
}

int corebound_comm_barrier(int64_t handle, double timeout_s) {
  Group *group = find(handle);
  return group ? finish(*group, group->barrier(timeout_s)) : unknown();
}

int corebound_comm_size(int64_t handle) {
  Group *group = find(handle);
  return group ? group->size() : 0;
}

const char *corebound_comm_variant(void) { return arithmetic(corebound::isa::active()).variant; }

int corebound_comm_sum(void *dst, const void *const *sources, int num_sources, int64_t num_elements, int dtype) {
  if (dtype < 0 || dtype >= num_sum_dtypes || num_sources < 1) {
    return report(Code::unsupported, "shm sum: cannot sum this dtype");
  }
  arithmetic(corebound::isa::active()).sum[dtype](dst, sources, num_sources, static_cast<size_t>(num_elements));
  return 0;
}
