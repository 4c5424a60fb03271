// What lies between the fused projection and attention, in one pass over each token: split, normalise,
// rotate, store to the cache.
#include "kernels/kernels.h"
#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

template <class T> void rotate_head(const T *x, bf16 *out, const QkvArgs &args, int64_t position) {
  const int64_t half = args.cos ? args.half : 0;
  const float *cos = args.cos + position * half, *sin = args.sin + position * half;
  if (args.interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
      out[2 * i] = from_float<bf16>(a * cos[i] - b * sin[i]);
      out[2 * i + 1] = from_float<bf16>(b * cos[i] + a * sin[i]);
    }
  } else {
    for (int64_t i = 0; i < half; i += Vec::width) {
      const int64_t n = half - i;
      const Vec a = load_upto(x + i, n), b = load_upto(x + half + i, n);
      const Vec c = load_upto(cos + i, n), s = load_upto(sin + i, n);
      store_upto(a * c - b * s, out + i, n);
      store_upto(fma(b, c, a * s), out + half + i, n);
    }
  }
  for (int64_t i = 2 * half; i < args.head_dim; i += Vec::width) {
    store_upto(load_upto(x + i, args.head_dim - i), out + i, args.head_dim - i);
  }
}

// The head over its root mean square, times `weight` where there is one, turned.
inline void place_head(const bf16 *x, const uint16_t *weight, bf16 *out, const QkvArgs &args, int64_t position) {
  if (!weight) {
    return rotate_head(x, out, args, position);
  }
  const auto *weights = reinterpret_cast<const bf16 *>(weight);
  float normed[max_head_dim];
  Vec squares = Vec::zero();
  for (int64_t i = 0; i < args.head_dim; i += Vec::width) {
    const Vec value = load_upto(x + i, args.head_dim - i);
    squares = fma(value, value, squares);
  }
  const float mean = squares.sum() / static_cast<float>(args.head_dim);
  const Vec scale = Vec::set(1.0F / __builtin_sqrtf(mean + args.norm_eps));
  for (int64_t i = 0; i < args.head_dim; i += Vec::width) {
    const int64_t n = args.head_dim - i;
    store_upto(load_upto(x + i, n) * scale * load_upto(weights + i, n), normed + i, n);
  }
  rotate_head(static_cast<const float *>(normed), out, args, position);
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void split_rotate_store(const QkvArgs &args, int64_t begin, int64_t end) {
  const int64_t dim = args.head_dim;
  const auto head_bytes = static_cast<size_t>(dim) * sizeof(bf16);
  for (int64_t token = 0; token < args.tokens; ++token) {
    const bf16 *row = reinterpret_cast<const bf16 *>(args.qkv) + token * args.stride;
    const int64_t position = args.positions[token];
    const int64_t block = args.slots[token] / args.block_size, offset = args.slots[token] % args.block_size;
    for (int64_t kv = begin; kv < end; ++kv) {
      for (int64_t head = args.first_head[kv]; head < args.first_head[kv + 1]; ++head) {
        bf16 *q = reinterpret_cast<bf16 *>(args.q) + (token * args.heads + head) * dim;
        place_head(row + (args.per_head ? 3 * head : head) * dim, args.q_norm, q, args, position);
      }
      const bf16 *k = row + (args.per_head ? 3 * kv + 1 : args.heads + kv) * dim;
      const bf16 *v = row + (args.per_head ? 3 * kv + 2 : args.heads + args.kv_heads + kv) * dim;
      const int64_t to = block * args.block_stride + (kv * args.block_size + offset) * dim;
      place_head(k, args.k_norm, reinterpret_cast<bf16 *>(args.key_cache) + to, args, position);
      std::memcpy(args.value_cache + to, v, head_bytes);
    }
  }
}

} // namespace corebound::kernels::COREBOUND_VARIANT
