// What lies between the fused projection and attention, in one pass over each token: split, rotate, store to the cache.
#include "kernels/panel.h"
#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

inline void rotate_head(const bf16 *x, bf16 *out, const QkvArgs &args, int64_t position) {
  const int64_t half = args.head_dim / 2;
  if (!args.cos) {
    std::memcpy(out, x, static_cast<size_t>(args.head_dim) * sizeof(bf16));
    return;
  }
  const float *cos = args.cos + position * half, *sin = args.sin + position * half;
  for (int64_t i = 0; i < half; i += Vec::width) {
    const int64_t n = half - i;
    const Vec a = load_upto(x + i, n), b = load_upto(x + half + i, n);
    const Vec c = load_upto(cos + i, n), s = load_upto(sin + i, n);
    store_upto(a * c - b * s, out + i, n);
    store_upto(fma(b, c, a * s), out + half + i, n);
  }
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
        rotate_head(row + (args.per_head ? 3 * head : head) * dim, q, args, position);
      }
      const bf16 *k = row + (args.per_head ? 3 * kv + 1 : args.heads + kv) * dim;
      const bf16 *v = row + (args.per_head ? 3 * kv + 2 : args.heads + args.kv_heads + kv) * dim;
      const int64_t to = ((block * args.kv_heads + kv) * args.block_size + offset) * dim;
      rotate_head(k, reinterpret_cast<bf16 *>(args.key_cache) + to, args, position);
      std::memcpy(args.value_cache + to, v, head_bytes);
    }
  }
}

} // namespace corebound::kernels::COREBOUND_VARIANT
