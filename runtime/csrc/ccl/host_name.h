// What oneCCL is told when it asks for the name of its host.
#pragma once

namespace corebound::ccl_binding {

// Set once, before anything else is asked of oneCCL.
void set_host_name(const char *name);

} // namespace corebound::ccl_binding
