// Whether values are such as a model has, and the ends of a group of them, from their bits.
#pragma once

#include "kernels/panel_load.h"
#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

constexpr int64_t line = 64; // bytes

// Magnitudes order as their bits do, with infinity and NaN above all others.
template <typename Bits, typename Signed> bool within(const ValueArgs &args, Bits magnitude, Bits limit) {
  Signed largest = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const Bits *values = static_cast<const Bits *>(args.values) + row * args.stride;
    for (int64_t i = 0; i < args.columns; ++i) {
      const auto found = static_cast<Signed>(values[i] & magnitude);
      largest = found > largest ? found : largest;
    }
  }
  return static_cast<Bits>(largest) <= limit;
}

// Whether no value is NaN or has a magnitude beyond `largest`.
bool values_within(const ValueArgs &args, float largest) {
  const uint32_t bits = bits_of(largest);
  switch (args.kind) {
  case ValueKind::float32:
    return within<uint32_t, int32_t>(args, 0x7fffffffU, bits);
  case ValueKind::bfloat16:
    return within<uint16_t, int16_t>(args, 0x7fffU, static_cast<uint16_t>(bits >> 16));
  case ValueKind::float16: // all that are finite are smaller than any limit
    break;
  }
  return within<uint16_t, int16_t>(args, 0x7fffU, 0x7bffU);
}

// The largest magnitude of bf16 values, as bits, found on the way of lines through registers.
struct Magnitude {
  typedef int16_t Words __attribute__((vector_size(line)));
  Words largest{};

  void add(const char *words) {
    Words values;
    std::memcpy(&values, words, sizeof(values));
    values &= 0x7fff;
    largest = values > largest ? values : largest;
  }

  bool within(float limit) const {
    int16_t found = 0;
    for (int64_t i = 0; i < line / 2; ++i) {
      found = largest[i] > found ? largest[i] : found;
    }
    return found <= static_cast<int16_t>(bits_of(limit) >> 16);
  }
};

// The smallest and the largest of a group and of 0: as whole numbers, the bits of positive values order as they do, and
// those of negative ones, read without sign, come after all of them in the order of magnitudes.
struct Ends {
  float low, high;
  Ends(const uint16_t *values, int64_t count) {
    int16_t highest = 0;
    uint16_t lowest = 0x8000U;
    for (int64_t i = 0; i < count; ++i) {
      const auto with_sign = static_cast<int16_t>(values[i]);
      highest = with_sign > highest ? with_sign : highest;
      lowest = values[i] > lowest ? values[i] : lowest;
    }
    low = float_of(static_cast<uint32_t>(lowest) << 16);
    high = float_of(static_cast<uint32_t>(highest) << 16);
  }
};

COREBOUND_END_VARIANT
