#include "ccl/api.h"

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <oneapi/ccl.hpp>

#include "ccl/host_name.h"
#include "ccl/stdout_elsewhere.h"
#include "ccl/wait.h"
#include "comm/status.h"

using corebound::ccl_binding::Outcome;
using corebound::ccl_binding::StdoutElsewhere;
using corebound::ccl_binding::Waiter;
using corebound::comm::Code;

namespace {

thread_local std::string last_error;
bool tells_settings = false;

int fail(Code code, std::string text) {
  last_error = std::move(text);
  return static_cast<int>(code);
}

// The numbers of comm/reduce.h, and int8.
bool to_ccl(int dtype, ccl::datatype *out) {
  static constexpr ccl::datatype kinds[] = {ccl::datatype::float32, ccl::datatype::bfloat16, ccl::datatype::float16,
                                            ccl::datatype::int32, ccl::datatype::int8};
  if (dtype < 0 || dtype >= static_cast<int>(std::size(kinds)))
    return false;
  *out = kinds[dtype];
  return true;
}

// Operations under way, in the order of their start, and with whom each is; -1 for collectives.
struct Pending {
  std::vector<ccl::event> events;
  std::vector<int> peers;
  int64_t label = 0;
  std::vector<int64_t> labels; // every member's, of transfers
};

struct Group {
  Group(ccl::communicator &&made, int num_members) : communicator(std::move(made)), waiter(num_members) {}
  ccl::communicator communicator;
  Waiter waiter;
  std::map<int64_t, std::unique_ptr<Pending>> pending;
  int64_t next = 1;
  uint8_t mark = 1;
  std::vector<uint8_t> marks; // of the members that have come to a barrier
  int culprit = -1;
  bool broken = false;
};

struct Registry {
  std::mutex mutex;
  std::map<int64_t, Group *> groups;
  std::map<std::string, std::shared_ptr<ccl::kvs>> served;
  int64_t next = 1;
};

// Never destroyed: communicators must not be torn down by the order in which the process happens to unload libraries.
Registry &registry() {
  static auto *all = new Registry;
  return *all;
}

Group *find(int64_t handle) {
  std::lock_guard lock(registry().mutex);
  auto found = registry().groups.find(handle);
  return found == registry().groups.end() ? nullptr : found->second;
}

std::string address_key(const uint8_t *address) {
  return {reinterpret_cast<const char *>(address), ccl::kvs::address_max_size};
}

// Marks the group as broken. What is under way is never freed: oneCCL goes on with it.
int break_group(Group &group, Code code, const std::string &text, int culprit) {
  group.broken = true;
  group.culprit = culprit;
  for (auto &entry : group.pending)
    (void)entry.second.release();
  group.pending.clear();
  return fail(code, text);
}

int with_group(int64_t handle, const std::function<int(Group &)> &action) {
  Group *group = find(handle);
  if (group == nullptr)
    return fail(Code::misuse, "the communicator is closed");
  if (group->broken)
    return fail(Code::misuse, "the communicator failed before");
  try {
    return action(*group);
  } catch (const std::exception &error) {
    return break_group(*group, Code::system, error.what(), -1);
  }
}

int wait_for(Group &group, int64_t number, double timeout_s) {
  auto found = group.pending.find(number);
  if (found == group.pending.end())
    return fail(Code::misuse, "nothing of that number is under way");
  Outcome outcome = group.waiter.wait(found->second->events, timeout_s);
  if (outcome.code == Code::ok) {
    for (size_t member = 0; member < found->second->labels.size(); ++member)
      if (found->second->labels[member] != found->second->label)
        return break_group(group, Code::misuse, "a member made another call", static_cast<int>(member));
    group.pending.erase(found);
    return 0;
  }
  int culprit = outcome.culprit >= 0 ? outcome.culprit : found->second->peers[outcome.num_done];
  return break_group(group, outcome.code, outcome.text, culprit);
}

// Starts one collective operation and waits for it.
int run(int64_t handle, double timeout_s, const std::function<ccl::event(Group &)> &start) {
  return with_group(handle, [&](Group &group) {
    int64_t number = group.next++;
    auto &pending = group.pending[number] = std::make_unique<Pending>();
    {
      std::lock_guard lock(corebound::ccl_binding::progress_mutex());
      pending->events.push_back(start(group));
    }
    pending->peers.push_back(-1);
    return wait_for(group, number, timeout_s);
  });
}

} // namespace

const char *corebound_ccl_error() { return last_error.c_str(); }

const char *corebound_ccl_version() {
  static const std::string text = [] {
    auto found = ccl::get_library_version();
    return std::to_string(found.major) + "." + std::to_string(found.minor) + "." + std::to_string(found.update);
  }();
  return text.c_str();
}

size_t corebound_ccl_address_bytes() { return ccl::kvs::address_max_size; }

int corebound_ccl_init(int tells, const char *host_name) {
  tells_settings = tells != 0;
  corebound::ccl_binding::set_host_name(host_name);
  try {
    StdoutElsewhere elsewhere(tells_settings);
    ccl::init();
  } catch (const std::exception &error) {
    return fail(Code::system, error.what());
  }
  return 0;
}

int corebound_ccl_serve(uint8_t *address) {
  try {
    auto store = ccl::create_main_kvs();
    auto found = store->get_address();
    std::memcpy(address, found.data(), found.size());
    std::lock_guard lock(registry().mutex);
    registry().served[address_key(address)] = store;
  } catch (const std::exception &error) {
    return fail(Code::system, error.what());
  }
  return 0;
}

int corebound_ccl_open(const uint8_t *address, int serves, int rank, int size, int64_t *handle) {
  try {
    std::shared_ptr<ccl::kvs> store;
    if (serves != 0) {
      std::lock_guard lock(registry().mutex);
      auto found = registry().served.find(address_key(address));
      if (found == registry().served.end())
        return fail(Code::misuse, "this process did not make that address");
      store = found->second;
    } else {
      ccl::kvs::address_type copy;
      std::memcpy(copy.data(), address, copy.size());
      store = ccl::create_kvs(copy);
    }
    StdoutElsewhere elsewhere(tells_settings);
    auto group = std::make_unique<Group>(ccl::create_communicator(size, rank, store), size);
    std::lock_guard lock(registry().mutex);
    registry().served.erase(address_key(address));
    *handle = registry().next++;
    registry().groups[*handle] = group.release();
  } catch (const std::exception &error) {
    return fail(Code::system, error.what());
  }
  return 0;
}

int corebound_ccl_watch(int64_t handle, const int *sockets) {
  Group *group = find(handle);
  if (group == nullptr)
    return fail(Code::misuse, "the communicator is closed");
  group->waiter.watch(sockets);
  return 0;
}

int corebound_ccl_culprit(int64_t handle) {
  Group *group = find(handle);
  return group == nullptr ? -1 : group->culprit;
}

int corebound_ccl_close(int64_t handle, int destroys) {
  std::unique_ptr<Group> group;
  {
    std::lock_guard lock(registry().mutex);
    auto found = registry().groups.find(handle);
    if (found == registry().groups.end())
      return 0;
    group.reset(found->second);
    registry().groups.erase(found);
  }
  if (destroys == 0 || group->broken || !group->pending.empty())
    (void)group.release();
  return 0;
}

int corebound_ccl_all_reduce(int64_t handle, void *data, int64_t num_elements, int dtype, double timeout_s) {
  ccl::datatype kind;
  if (!to_ccl(dtype, &kind))
    return fail(Code::unsupported, "no such dtype");
  return run(handle, timeout_s, [=](Group &group) {
    return ccl::allreduce(data, data, static_cast<size_t>(num_elements), kind, ccl::reduction::sum, group.communicator);
  });
}

int corebound_ccl_all_gather(int64_t handle, const void *in, void *out, int64_t num_bytes, double timeout_s) {
  return run(handle, timeout_s, [=](Group &group) {
    return ccl::allgather(in, out, static_cast<size_t>(num_bytes), ccl::datatype::uint8, group.communicator);
  });
}

int corebound_ccl_broadcast(int64_t handle, void *data, int64_t num_bytes, int root, double timeout_s) {
  return run(handle, timeout_s, [=](Group &group) {
    return ccl::broadcast(data, static_cast<size_t>(num_bytes), ccl::datatype::uint8, root, group.communicator);
  });
}

int corebound_ccl_barrier(int64_t handle, double timeout_s) {
  // oneCCL's own barrier waits where it is called, without a limit.
  return run(handle, timeout_s, [](Group &group) {
    group.marks.resize(static_cast<size_t>(group.communicator.size()));
    return ccl::allgather(&group.mark, group.marks.data(), 1, ccl::datatype::uint8, group.communicator);
  });
}

int corebound_ccl_start(int64_t handle, int64_t label, const CoreboundTransfer *transfers, int num_transfers,
                        int64_t *pending) {
  return with_group(handle, [=](Group &group) {
    // oneCCL numbers collectives, but not messages between two members: of two it may begin either first.
    if (!group.pending.empty())
      return fail(Code::misuse, "transfers are under way");
    // What a member sent before it gave up may all be here. That would do for this one, but not for the others.
    if (int ended = group.waiter.ended_member(); ended >= 0)
      return break_group(group, Code::peer_lost, "a member's connection had ended", ended);
    int64_t number = group.next++;
    auto &started = group.pending[number] = std::make_unique<Pending>();
    started->label = label;
    started->labels.resize(static_cast<size_t>(group.communicator.size()));
    std::lock_guard lock(corebound::ccl_binding::progress_mutex());
    for (const auto *one = transfers; one != transfers + num_transfers; ++one) {
      auto num_bytes = static_cast<size_t>(one->num_bytes);
      started->peers.push_back(one->peer);
      started->events.push_back(
          one->is_send != 0 ? ccl::send(one->data, num_bytes, ccl::datatype::uint8, one->peer, group.communicator)
                            : ccl::recv(one->data, num_bytes, ccl::datatype::uint8, one->peer, group.communicator));
    }
    started->peers.push_back(-1);
    started->events.push_back(
        ccl::allgather(&started->label, started->labels.data(), 1, ccl::datatype::int64, group.communicator));
    *pending = number;
    return 0;
  });
}

int corebound_ccl_wait(int64_t handle, int64_t pending, double timeout_s) {
  return with_group(handle, [=](Group &group) { return wait_for(group, pending, timeout_s); });
}
