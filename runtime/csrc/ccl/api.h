// The C interface of libcorebound_ccl.so: oneCCL's communicators behind handles.
//
// Functions that return int return 0 or a Code of comm/status.h; the text of the calling thread's last failure is
// corebound_ccl_error(). A handle serves one thread at a time. After a failure other than misuse a handle is broken:
// oneCCL may still write into the buffers of that call, so the caller keeps them for as long as the process lives.
#pragma once

#include <cstddef>
#include <cstdint>

#include "export.h"

COREBOUND_API const char *corebound_ccl_error(void);
COREBOUND_API const char *corebound_ccl_version(void);

// Reads oneCCL's settings from the environment, once a process; from then on they are fixed. oneCCL tells on standard
// output which of them are not its defaults: that goes to standard error if `tells` is 1, else nowhere. `host_name` is
// what it takes for the name of this host: other for each two hosts whose processes may have the same numbers.
COREBOUND_API int corebound_ccl_init(int tells, const char *host_name);
// Makes a key-value store in this process and writes the address by which other members find it.
COREBOUND_API size_t corebound_ccl_address_bytes(void);
COREBOUND_API int corebound_ccl_serve(uint8_t *address);
// Joins a communicator; blocks until all members have come. `serves` is 1 for the member that made the address.
COREBOUND_API int corebound_ccl_open(const uint8_t *address, int serves, int rank, int size, int64_t *handle);
// Sockets by which the ends of members are noticed: one for each member, -1 for the own place.
COREBOUND_API int corebound_ccl_watch(int64_t handle, const int *sockets);
// Which member was lost by the handle's last failure, -1 if that is not known.
COREBOUND_API int corebound_ccl_culprit(int64_t handle);
// Leaves the communicator. `destroys` gives it back to oneCCL, which only all members together can do; otherwise, and
// when it is broken, it stays until the process ends, because its end waits for, or aborts over, members that are gone.
COREBOUND_API int corebound_ccl_close(int64_t handle, int destroys);

// `dtype` is a Dtype below. `timeout_s` may be infinite.
COREBOUND_API int corebound_ccl_all_reduce(int64_t handle, void *data, int64_t num_elements, int dtype,
                                           double timeout_s);
COREBOUND_API int corebound_ccl_all_gather(int64_t handle, const void *in, void *out, int64_t num_bytes,
                                           double timeout_s);
COREBOUND_API int corebound_ccl_broadcast(int64_t handle, void *data, int64_t num_bytes, int root, double timeout_s);
COREBOUND_API int corebound_ccl_barrier(int64_t handle, double timeout_s);

// One message between two members: this one and `peer`.
struct CoreboundTransfer {
  void *data;
  int64_t num_bytes;
  int32_t peer;
  int32_t is_send;
};
// Starts several transfers at once, at most one each way between two members. All members call it, those that neither
// send nor receive too, and with the same `label`: oneCCL gives short messages to calls that expect long ones, so each
// member tells the others which call it is in. Buffers stay as they are until `pending` was waited for, and nothing
// else starts until then.
COREBOUND_API int corebound_ccl_start(int64_t handle, int64_t label, const CoreboundTransfer *transfers,
                                      int num_transfers, int64_t *pending);
COREBOUND_API int corebound_ccl_wait(int64_t handle, int64_t pending, double timeout_s);
