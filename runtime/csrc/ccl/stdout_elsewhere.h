// Keeps what oneCCL writes to standard output from among our results.
#pragma once

#include <cstdio>
#include <fcntl.h>
#include <iostream>
#include <unistd.h>

namespace corebound::ccl_binding {

// While it lives, standard output goes to standard error if `tells`, else nowhere.
class StdoutElsewhere {
public:
  explicit StdoutElsewhere(bool tells) : saved_(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3)) {
    fflush(stdout);
    int other = tells ? fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3) : open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (saved_ >= 0 && other >= 0)
      dup2(other, STDOUT_FILENO);
    if (other >= 0)
      close(other);
  }
  ~StdoutElsewhere() {
    std::cout.flush();
    fflush(stdout);
    if (saved_ >= 0) {
      dup2(saved_, STDOUT_FILENO);
      close(saved_);
    }
  }

private:
  int saved_;
};

} // namespace corebound::ccl_binding
