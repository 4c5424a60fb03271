// The C functions over several hosts: messages between them, and an all-reduce on both levels in one call. Between the
// steps of that there is nothing else to do: a caller that came back in between would hold up the ranks that share its
// processor.
#include <algorithm>
#include <cmath>
#include <vector>

#include "comm/api.h"
#include "comm/clock.h"
#include "comm/exchange.h"
#include "comm/group.h"
#include "comm/report.h"

using namespace corebound::comm;

namespace {

// The own part of the data, as the hosts exchange it.
struct Slice {
  char *data;
  size_t num_elements;
  size_t num_bytes;
};

Slice own_slice(const CoreboundHosts &hosts, void *data, int64_t num_elements) {
  const size_t element = element_bytes(static_cast<DType>(hosts.dtype));
  const size_t count = static_cast<size_t>(num_elements);
  const size_t length = hosts.num_slices > 1 ? slice_elements(count, element, hosts.num_slices) : count;
  const size_t begin = std::min(count, static_cast<size_t>(hosts.local_rank) * length);
  const size_t end = std::min(count, begin + length);
  return {static_cast<char *>(data) + begin * element, end - begin, (end - begin) * element};
}

// Every host sends its part to all others, and adds all in the order of the hosts: each holds the same bits.
int sum_between(CoreboundHosts &hosts, const Slice &slice, double timeout_s) {
  std::vector<Message> messages;
  std::vector<int> host_of;
  std::vector<const void *> sources;
  char *room = static_cast<char *>(hosts.room);
  for (int host = 0; host < hosts.num_hosts; ++host) {
    if (host == hosts.host) {
      sources.push_back(slice.data);
      continue;
    }
    messages.push_back({hosts.sockets[host], slice.data, slice.num_bytes, true});
    messages.push_back({hosts.sockets[host], room, slice.num_bytes, false});
    host_of.insert(host_of.end(), 2, host);
    sources.push_back(room);
    room += slice.num_bytes;
  }
  const Exchanged done = exchange(messages, hosts.label, timeout_s);
  if (done.code != Code::ok) {
    hosts.failed_host = host_of[done.message];
    return report(done.code, done.text);
  }
  arithmetic(corebound::isa::active())
      .sum[hosts.dtype](slice.data, sources.data(), hosts.num_hosts, slice.num_elements);
  return 0;
}

} // namespace

int corebound_comm_exchange(const CoreboundMessage *messages, int num_messages, uint64_t label, double timeout_s,
                            int *failed) {
  std::vector<Message> all;
  for (const auto *one = messages; one != messages + num_messages; ++one) {
    all.push_back({one->socket, one->data, static_cast<size_t>(one->num_bytes), one->is_send != 0});
  }
  const Exchanged done = exchange(all, label, timeout_s);
  *failed = static_cast<int>(done.message);
  return done.code == Code::ok ? 0 : report(done.code, done.text);
}

int corebound_comm_all_reduce_hosts(CoreboundHosts *hosts, void *data, int64_t num_elements, double timeout_s) {
  const double end_s = clock_s() + timeout_s;
  const auto left_s = [&] { return std::max(end_s - clock_s(), 0.0); };
  hosts->failed_host = -1;
  if (hosts->dtype < 0 || hosts->dtype >= num_sum_dtypes) {
    return report(Code::unsupported, "all_reduce: cannot sum this dtype");
  }
  if (hosts->local != 0) {
    if (const int code = corebound_comm_reduce_slices(hosts->local, data, num_elements, hosts->dtype, hosts->num_slices,
                                                      timeout_s)) {
      return code;
    }
  }
  if (hosts->num_hosts > 1 && hosts->local_rank < hosts->num_slices) {
    const Slice slice = own_slice(*hosts, data, num_elements);
    if (slice.num_elements > 0) {
      if (const int code = sum_between(*hosts, slice, left_s() + hosts->link_extra_s)) {
        return code;
      }
    }
  }
  if (hosts->local != 0) {
    return corebound_comm_gather_slices(hosts->local, data, num_elements, hosts->dtype, hosts->num_slices,
                                        left_s() + hosts->last_extra_s);
  }
  return 0;
}
