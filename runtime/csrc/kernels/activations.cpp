// GELU and the gated SiLU.
#include "kernels/ops_internal.h"
#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

// 0.5 x (1 + tanh(u)) is x / (1 + e^-2u), which keeps relative accuracy where tanh comes close to -1.
inline Vec gelu_tanh(Vec x) {
  const Vec cubic = fma(x * x * x, Vec::set(0.044715F), x);
  return x * sigmoid(cubic * Vec::set(1.59576912F)); // 2 sqrt(2 / pi)
}

// erfc(z) for z >= 0 as t e^(-z^2 + P(t)), t = 1 / (1 + z/2). P was fitted by least squares on Chebyshev nodes for z up
// to 9.5; the relative error is below 2e-7, so that the result keeps its accuracy where x is very negative.
inline Vec erfc_positive(Vec z) {
  constexpr float coefficients[] = {0.140507132F,  -0.656615853F, 1.09943843F,  -0.619523346F, -0.144173503F,
                                    0.0354678631F, 0.022874143F,  0.389117151F, 0.998341441F,  -1.26543343F};
  const Vec t = Vec::set(1.0F) / fma(z, Vec::set(0.5F), Vec::set(1.0F));
  Vec p = Vec::zero();
  for (float c : coefficients) {
    p = fma(p, t, Vec::set(c));
  }
  return t * exp(p - z * z);
}

inline Vec gelu_erf(Vec x) {
  const Vec tail = erfc_positive(abs(x) * Vec::set(0.707106781F));
  return Vec::set(0.5F) * x * where_negative(x, tail, Vec::set(2.0F) - tail);
}

template <class T> void gelu_range(const UnaryArgs &args, int64_t begin, int64_t end) {
  const T *x = static_cast<const T *>(args.x);
  T *y = static_cast<T *>(args.y);
  for (int64_t i = begin; i < end; i += Vec::width) {
    const Vec in = load_upto(x + i, end - i);
    store_upto(args.exact ? gelu_erf(in) : gelu_tanh(in), y + i, end - i);
  }
}

template <class T> void silu_mul_rows(const SiluMulArgs &args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T *gate = static_cast<const T *>(args.gate_up) + row * 2 * args.width, *up = gate + args.width;
    T *y = static_cast<T *>(args.y) + row * args.width;
    for (int64_t i = 0; i < args.width; i += Vec::width) {
      const int64_t n = args.width - i;
      const Vec g = load_upto(gate + i, n);
      store_upto(g * sigmoid(g) * load_upto(up + i, n), y + i, n);
    }
  }
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void gelu(const UnaryArgs &args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { gelu_range<T>(args, begin, end); });
}

void silu_mul(const SiluMulArgs &args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { silu_mul_rows<T>(args, begin, end); });
}

} // namespace corebound::kernels::COREBOUND_VARIANT
