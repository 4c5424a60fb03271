// Pairs in plain C++.
#pragma once

COREBOUND_BEGIN_VARIANT

struct Sums16 {
  float v[16];
  static Sums16 zero() { return {}; }
  static Sums16 load(const float *p) {
    Sums16 sums;
    std::memcpy(sums.v, p, sizeof sums.v);
    return sums;
  }
  void store(float *p) const { std::memcpy(p, v, sizeof v); }
};

inline Sums16 operator+(Sums16 a, const Sums16 &b) {
  for (int i = 0; i < 16; ++i) {
    a.v[i] += b.v[i];
  }
  return a;
}

struct Pairs16 {
  uint16_t v[32];
  static Pairs16 load(const void *p) {
    Pairs16 pairs;
    std::memcpy(pairs.v, p, sizeof pairs.v);
    return pairs;
  }
  void store(void *p) const { std::memcpy(p, v, sizeof v); }
};

struct InputPair {
  float first, second;
  static InputPair load(const uint16_t *x) { return {to_float(bf16{x[0]}), to_float(bf16{x[1]})}; }
};

inline Sums16 add_products(Sums16 sums, Pairs16 weights, InputPair x) {
  for (int i = 0; i < 16; ++i) {
    sums.v[i] += to_float(bf16{weights.v[2 * i]}) * x.first + to_float(bf16{weights.v[2 * i + 1]}) * x.second;
  }
  return sums;
}

COREBOUND_END_VARIANT
