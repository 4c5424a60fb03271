// GELU and the gated SiLU.
#include "kernels/activation.h"
#include "kernels/ops_internal.h"

COREBOUND_BEGIN_VARIANT

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
