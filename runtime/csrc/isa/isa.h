// Which instruction sets the processor and the operating system offer together, and which of them kernels use.
// Everything here is thread-safe and needs no torch.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "export.h"

namespace corebound::isa {

// In rising order: the requirements of each include those of the ones before it.
enum class Variant : int { generic, avx2, avx512, avx512_vnni, avx512_bf16, amx };
inline constexpr int num_variants = 6;

// One capability as CPUID reports it.
struct Feature {
  const char *name;
  bool present;
};

struct Machine {
  std::string vendor;
  std::string brand;
  std::array<Feature, 14> features;
  uint64_t xcr0;       // register state that the operating system saves; 0 without XGETBV
  bool os_avx;         // saves the 256-bit registers
  bool os_avx512;      // and the 512-bit registers and masks
  bool os_amx;         // and the tiles
  bool amx_permission; // this process was allowed to use tiles (asked for once, on first use of machine())
};

// The machine this process runs on, looked at once.
const Machine &machine();

const char *name(Variant variant);

// What `machine` lacks to run `variant`, by name; empty when it can.
std::vector<std::string> missing(Variant variant, const Machine &machine);

// The best variant that runs here, or the forced one.
COREBOUND_EXPORT Variant active();

// Makes `variant` the active one. Returns an empty string, or what is wrong and which names would do.
std::string force(std::string_view variant);

} // namespace corebound::isa
