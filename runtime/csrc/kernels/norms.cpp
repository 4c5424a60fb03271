// Layer norm and RMS norm, with the residual sum ahead of them where asked. A row stays in the first-level cache, so
// reading it again for each moment costs nothing next to the exactness of the two-pass variance.
#include "kernels/ops_internal.h"
#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

// Returns the row to normalise: x itself, or the stored sum with the residual.
template <class T> const T *add_residual(const NormArgs &args, int64_t row) {
  const T *x = static_cast<const T *>(args.x) + row * args.width;
  if (!args.residual) {
    return x;
  }
  const T *residual = static_cast<const T *>(args.residual) + row * args.width;
  T *sum = static_cast<T *>(args.sum) + row * args.width;
  const Vec scale = Vec::set(args.x_scale);
  for (int64_t i = 0; i < args.width; i += Vec::width) {
    const int64_t n = args.width - i;
    store_upto(fma(load_upto(x + i, n), scale, load_upto(residual + i, n)), sum + i, n);
  }
  return sum;
}

template <class T> float row_sum(const T *x, int64_t width) {
  Vec total = Vec::zero();
  for (int64_t i = 0; i < width; i += Vec::width) {
    total = total + load_upto(x + i, width - i);
  }
  return total.sum();
}

// Sum of (x - centre)^2.
template <class T> float row_square_sum(const T *x, int64_t width, float centre) {
  const Vec c = Vec::set(centre);
  Vec total = Vec::zero();
  int64_t i = 0;
  for (; i + Vec::width <= width; i += Vec::width) {
    const Vec d = Vec::load(x + i) - c;
    total = fma(d, d, total);
  }
  float sum = total.sum();
  for (; i < width; ++i) { // lanes past the end would count as (0 - centre)^2
    const float d = to_float(x[i]) - centre;
    sum += d * d;
  }
  return sum;
}

template <class T> void layer_norm_rows(const NormArgs &args, int64_t begin, int64_t end) {
  const T *weight = static_cast<const T *>(args.weight), *bias = static_cast<const T *>(args.bias);
  const float count = static_cast<float>(args.width);
  for (int64_t row = begin; row < end; ++row) {
    const T *x = add_residual<T>(args, row);
    T *y = static_cast<T *>(args.y) + row * args.width;
    const float mean = row_sum(x, args.width) / count;
    const float variance = row_square_sum(x, args.width, mean) / count;
    const Vec centre = Vec::set(mean), scale = Vec::set(1.0F / __builtin_sqrtf(variance + args.eps));
    const Vec offset = Vec::set(args.weight_offset);
    for (int64_t i = 0; i < args.width; i += Vec::width) {
      const int64_t n = args.width - i;
      const Vec normal = (load_upto(x + i, n) - centre) * scale;
      store_upto(fma(normal, load_upto(weight + i, n) + offset, load_upto(bias + i, n)), y + i, n);
    }
  }
}

template <class T> void rms_norm_rows(const NormArgs &args, int64_t begin, int64_t end) {
  const T *weight = static_cast<const T *>(args.weight);
  const float count = static_cast<float>(args.width);
  for (int64_t row = begin; row < end; ++row) {
    const T *x = add_residual<T>(args, row);
    T *y = static_cast<T *>(args.y) + row * args.width;
    const float mean_square = row_square_sum(x, args.width, 0.0F) / count;
    const Vec scale = Vec::set(1.0F / __builtin_sqrtf(mean_square + args.eps));
    const Vec offset = Vec::set(args.weight_offset);
    for (int64_t i = 0; i < args.width; i += Vec::width) {
      const int64_t n = args.width - i;
      store_upto(load_upto(x + i, n) * scale * (load_upto(weight + i, n) + offset), y + i, n);
    }
  }
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void layer_norm(const NormArgs &args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { layer_norm_rows<T>(args, begin, end); });
}

void rms_norm(const NormArgs &args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { rms_norm_rows<T>(args, begin, end); });
}

} // namespace corebound::kernels::COREBOUND_VARIANT
