#include "ccl/host_name.h"

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <string>

namespace corebound::ccl_binding {

namespace {

std::string &host_name() {
  static auto *name = new std::string;
  return *name;
}

} // namespace

void set_host_name(const char *name) { host_name() = name; }

} // namespace corebound::ccl_binding

// oneCCL takes members with the same process number and host name for one process, and waits for the second for ever.
// In containers both are often the same, and it cuts names at underscores. So its calls of gethostname, and no others,
// are linked to this.
extern "C" __attribute__((visibility("hidden"))) int __wrap_gethostname(char *name, size_t num_bytes) {
  const std::string &own = corebound::ccl_binding::host_name();
  if (own.empty() || own.size() >= num_bytes) {
    errno = ENAMETOOLONG;
    return -1;
  }
  std::snprintf(name, num_bytes, "%s", own.c_str());
  return 0;
}
