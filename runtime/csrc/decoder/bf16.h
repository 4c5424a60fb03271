// Single values of bf16.
#pragma once

#include <cstdint>

namespace corebound::decoder {

inline float from_bf16(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

inline uint16_t to_bf16(float x) {
  const auto u = __builtin_bit_cast(uint32_t, x);
  if ((u & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<uint16_t>((u >> 16) | 0x40U);
  }
  return static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}

} // namespace corebound::decoder
