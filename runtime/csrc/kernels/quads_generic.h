// Products of codes with whole-numbered inputs in plain C++.
#pragma once

COREBOUND_BEGIN_VARIANT

// Sums of sixteen outputs, in whole numbers.
struct Counts16 {
  int32_t v[16];
  static Counts16 zero() { return {}; }
  Vec part(int64_t index) const {
    Vec::Ints four;
    std::memcpy(&four, v + Vec::width * index, sizeof four);
    return {__builtin_convertvector(four, Vec::Floats)};
  }
};

// Splits whole numbers into 128 * high + low.
inline void store_halves(Vec whole, int8_t *high, int8_t *low) {
  for (int i = 0; i < Vec::width; ++i) {
    const auto value = static_cast<int32_t>(whole.v[i]);
    const int32_t upper = (value + 64) >> 7;
    high[i] = static_cast<int8_t>(upper);
    low[i] = static_cast<int8_t>(value - 128 * upper);
  }
}

// Codes of sixteen outputs for four inputs each.
struct Quads16 {
  uint8_t v[64];
  static Quads16 load(const void *p) {
    Quads16 quads;
    std::memcpy(quads.v, p, sizeof quads.v);
    return quads;
  }
};
inline Quads16 low_nibbles(Quads16 bytes) {
  for (uint8_t &byte : bytes.v) {
    byte &= 15;
  }
  return bytes;
}
inline Quads16 high_nibbles(Quads16 bytes) {
  for (uint8_t &byte : bytes.v) {
    byte >>= 4;
  }
  return bytes;
}

struct InputQuad {
  const int8_t *x;
  static InputQuad load(const int8_t *x) { return {x}; }
};
inline Counts16 add_products(Counts16 sums, const Quads16 &codes, InputQuad x) {
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 4; ++k) {
      sums.v[i] += codes.v[4 * i + k] * x.x[k];
    }
  }
  return sums;
}

COREBOUND_END_VARIANT
