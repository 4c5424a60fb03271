// The C interface of csrc/comm. See group.h for what the operations promise.
//
// Functions that return int return 0 or a Code of status.h; the text of the calling thread's last failure is
// corebound_comm_error(). A handle is not 0; it must not be closed while another thread uses it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "export.h"

COREBOUND_API const char *corebound_comm_error(void);

// Bytes of shared memory that one member needs.
COREBOUND_API size_t corebound_comm_segment_bytes(size_t chunk_bytes);

// Opening, in this order and by every member: open (creates the own segment and writes its 16-byte token), attach for
// each peer, unlink, probe. What is told between the steps (paths, tokens, success) travels outside.
COREBOUND_API int corebound_comm_open(const char *path, int rank, int size, const int *global_ranks, size_t chunk_bytes,
                                      double timeout_s, int oversubscribed, int64_t *handle, uint8_t *token);
COREBOUND_API int corebound_comm_attach(int64_t handle, int peer, const char *path, const uint8_t *token);
COREBOUND_API int corebound_comm_unlink(int64_t handle);
COREBOUND_API int corebound_comm_probe(int64_t handle, double budget_s);
COREBOUND_API int corebound_comm_close(int64_t handle);

// Fixes algorithm and store kind for all sizes, on this member: every member must do the same.
COREBOUND_API int corebound_comm_set_choice(int64_t handle, int two_shot, int streaming);
// Writes JSON: variant, segment_bytes, chunk_bytes, probe_ms, rules.
COREBOUND_API int corebound_comm_describe(int64_t handle, char *text, size_t text_bytes);
COREBOUND_API int corebound_comm_size(int64_t handle);

// `dtype` is a DType of reduce.h. A negative timeout means the group's own.
COREBOUND_API int corebound_comm_all_reduce(int64_t handle, void *data, int64_t num_elements, int dtype,
                                            double timeout_s);
COREBOUND_API int corebound_comm_all_gather(int64_t handle, const void *in, void *out, int64_t num_bytes,
                                            double timeout_s);
COREBOUND_API int corebound_comm_broadcast(int64_t handle, void *data, int64_t num_bytes, int root, double timeout_s);
COREBOUND_API int corebound_comm_reduce_slices(int64_t handle, void *data, int64_t num_elements, int dtype,
                                               int num_slices, double timeout_s);
COREBOUND_API int corebound_comm_gather_slices(int64_t handle, void *data, int64_t num_elements, int dtype,
                                               int num_slices, double timeout_s);

// One message over a connected TCP socket to or from a member on another host; at most one each way on a socket.
struct CoreboundMessage {
  void *data;
  int64_t num_bytes;
  int32_t socket;
  int32_t is_send;
};
// Returns when all are over. `label` stands for the call: a message for another one, or of another size, is misuse.
// `failed` becomes the number of the message that failed. After a failure the sockets are to be closed.
COREBOUND_API int corebound_comm_exchange(const struct CoreboundMessage *messages, int num_messages, uint64_t label,
                                          double timeout_s, int *failed);

// An all-reduce over hosts, as one member takes part in it: the sums of its host by reduce_slices, those between hosts
// over the sockets, then gather_slices. Each step may wait somewhat longer than the one before, so whoever sees the
// late member itself is the first to say so.
struct CoreboundHosts {
  int64_t local; // handle of the own host's group, 0 for its only member
  int32_t local_rank;
  int32_t num_slices; // the first so many members of each host own a slice
  int32_t host;       // the own one
  int32_t num_hosts;
  const int32_t *sockets; // to the owners of the same slice, by host; not read at the own place
  void *room;             // for the other hosts' parts of the own slice
  uint64_t label;
  double link_extra_s;
  double last_extra_s;
  int32_t dtype;
  int32_t failed_host; // set by a failure between hosts, -1 by one of the own host
};
COREBOUND_API int corebound_comm_all_reduce_hosts(struct CoreboundHosts *hosts, void *data, int64_t num_elements,
                                                  double timeout_s);
COREBOUND_API int64_t corebound_comm_slice_elements(int64_t num_elements, int dtype, int num_slices);
COREBOUND_API int corebound_comm_abandon(int64_t handle, int culprit);
COREBOUND_API int corebound_comm_barrier(int64_t handle, double timeout_s);

// The arithmetic alone, by the active variant, for tests of a variant without a group.
COREBOUND_API const char *corebound_comm_variant(void);
COREBOUND_API int corebound_comm_sum(void *dst, const void *const *sources, int num_sources, int64_t num_elements,
                                     int dtype);
