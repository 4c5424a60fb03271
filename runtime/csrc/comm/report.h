// How the C functions report: the code is returned, the text kept for corebound_comm_error().
#pragma once

#include <string>

#include "comm/status.h"

namespace corebound::comm {

int report(Code code, std::string text);

} // namespace corebound::comm
