// Times the very all-reduce that the torch operator calls, without Python around it.
#include <cstdint>
#include <ctime>

#include "comm/api.h"
#include "export.h"

namespace {

double now_us() {
  timespec t = {};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) * 1e-3;
}

} // namespace

// Times `num_rounds` all-reduces of `data` into `round_us`; every member calls it. Returns what the all-reduce returns.
COREBOUND_API int corebound_bench_all_reduce(int64_t group, void *data, int64_t num_elements, int dtype,
                                             int64_t num_rounds, double *round_us) {
  for (int64_t i = 0; i < num_rounds; ++i) {
    const double start = now_us();
    const int code = corebound_comm_all_reduce(group, data, num_elements, dtype, -1);
    if (code != 0) {
      return code;
    }
    round_us[i] = now_us() - start;
  }
  return 0;
}
