// Plain C++ for any x86-64, and the definition that the other variants are tested against.
#include <emmintrin.h>

#include <bit>
#include <cstring>

#include "comm/reduce.h"

namespace corebound::comm {
namespace {

float from_bf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) { // rounding could turn a NaN into infinity
    return static_cast<uint16_t>((bits >> 16) | 0x40U);
  }
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

float from_fp16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U) { // infinity and NaN
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  // Shift into fp32's place and correct the exponent's bias by a multiplication, which also normalises subnormals.
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

uint16_t to_fp16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return static_cast<uint16_t>(sign | 0x7e00U | ((magnitude >> 13) & 0x1ffU));
  }
  if (magnitude >= 0x477ff000U) { // rounds to 2^16 or more
    return static_cast<uint16_t>(sign | 0x7c00U);
  }
  if (magnitude < 0x38800000U) { // subnormal: let fp32 addition round at fp16's last place
    const float rounded = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(rounded) - std::bit_cast<uint32_t>(0.5F)));
  }
  const uint32_t rebiased = magnitude - 0x38000000U;
  return static_cast<uint16_t>(sign | ((rebiased + 0xfffU + ((rebiased >> 13) & 1U)) >> 13));
}

// Through memcpy, which unlike * asks for no alignment.
template <class T> T read(const T *p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <class T> void write(T *p, T value) { std::memcpy(p, &value, sizeof value); }

struct Bf16 {
  using Element = uint16_t;
  using Sum = float;
  static constexpr size_t lanes = 1;
  static Sum load(const Element *p) { return from_bf16(read(p)); }
  static Sum load_some(const Element *p, size_t) { return load(p); }
  static Sum add(Sum a, Sum b) { return a + b; }
  static void store(Element *p, Sum v) { write(p, to_bf16(v)); }
  static void store_some(Element *p, Sum v, size_t) { store(p, v); }
};

struct Fp16 : Bf16 {
  static Sum load(const Element *p) { return from_fp16(read(p)); }
  static Sum load_some(const Element *p, size_t) { return load(p); }
  static void store(Element *p, Sum v) { write(p, to_fp16(v)); }
  static void store_some(Element *p, Sum v, size_t) { store(p, v); }
};

template <class T> struct Word {
  using Element = T;
  using Sum = T;
  static constexpr size_t lanes = 1;
  static Sum load(const Element *p) { return read(p); }
  static Sum load_some(const Element *p, size_t) { return read(p); }
  static Sum add(Sum a, Sum b) { return a + b; }
  static void store(Element *p, Sum v) { write(p, v); }
  static void store_some(Element *p, Sum v, size_t) { write(p, v); }
};

#include "comm/reduce_loops.h"

void copy(void *dst, const void *source, size_t num_bytes) { std::memcpy(dst, source, num_bytes); }

void copy_streaming(void *dst, const void *source, size_t num_bytes) {
  auto *out = static_cast<char *>(dst);
  auto *in = static_cast<const char *>(source);
  size_t i = 0;
  if ((reinterpret_cast<uintptr_t>(out) & 15U) == 0) {
    for (; i + 16 <= num_bytes; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i *>(out + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i *>(in + i)));
    }
  }
  std::memcpy(out + i, in + i, num_bytes - i);
  _mm_sfence();
}

} // namespace

// uint32_t: the sum of int32 must wrap, which only unsigned arithmetic promises.
const Arithmetic arithmetic_generic = {
    "generic", {sum<Word<float>>, sum<Bf16>, sum<Fp16>, sum<Word<uint32_t>>}, copy, copy_streaming};

} // namespace corebound::comm
