// Products of codes with whole-numbered inputs in plain C++.
#pragma once

COREBOUND_BEGIN_VARIANT

// Sums of sixteen outputs, in whole numbers.
struct Counts16 {
  int32_t v[16];
  static Counts16 zero() { return {}; }
  void store(float *p) const {
    for (int i = 0; i < 16; ++i) {
      p[i] = static_cast<float>(v[i]);
    }
  }
};

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
