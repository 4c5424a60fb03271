// Ops that move data: the fused-QKV split, rotary embedding and the writes to the blocked cache.
#include "kernels/ops_internal.h"
#include "kernels/vec.h"

COREBOUND_BEGIN_VARIANT

inline void copy(void *to, const void *from, int64_t bytes) { std::memcpy(to, from, static_cast<size_t>(bytes)); }

inline char *at(void *base, int64_t bytes) { return static_cast<char *>(base) + bytes; }

inline const char *at(const void *base, int64_t bytes) { return static_cast<const char *>(base) + bytes; }

// Two halves of one head, `half` elements each, from x and x + half.
template <class T> void rotate_halves(const T *x, T *out, const float *cos, const float *sin, int64_t half) {
  for (int64_t i = 0; i < half; i += Vec::width) {
    const int64_t n = half - i;
    const Vec a = load_upto(x + i, n), b = load_upto(x + half + i, n);
    const Vec c = load_upto(cos + i, n), s = load_upto(sin + i, n);
    store_upto(a * c - b * s, out + i, n);
    store_upto(fma(b, c, a * s), out + half + i, n);
  }
}

template <class T> void rotate_pairs(const T *x, T *out, const float *cos, const float *sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = to_float(x[2 * i]), b = to_float(x[2 * i + 1]);
    out[2 * i] = from_float<T>(a * cos[i] - b * sin[i]);
    out[2 * i + 1] = from_float<T>(b * cos[i] + a * sin[i]);
  }
}

template <class T> void rotary_tokens(const RotaryArgs &args, int64_t begin, int64_t end) {
  const int64_t rest = args.head_dim - 2 * args.half;
  for (int64_t token = begin; token < end; ++token) {
    const float *cos = args.cos + args.positions[token] * args.half;
    const float *sin = args.sin + args.positions[token] * args.half;
    for (int64_t head = 0; head < args.heads; ++head) {
      const int64_t offset = (token * args.heads + head) * args.head_dim;
      const T *x = static_cast<const T *>(args.x) + offset;
      T *out = static_cast<T *>(args.out) + offset;
      if (args.interleaved) {
        rotate_pairs(x, out, cos, sin, args.half);
      } else {
        rotate_halves(x, out, cos, sin, args.half);
      }
      if (rest > 0 && out != x) {
        copy(out + 2 * args.half, x + 2 * args.half, rest * static_cast<int64_t>(sizeof(T)));
      }
    }
  }
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void split_qkv(const SplitQkvArgs &args, int64_t begin, int64_t end) {
  const int64_t head = args.head_dim * args.element_bytes;
  const int64_t q_bytes = args.heads * head, kv_bytes = args.kv_heads * head;
  for (int64_t token = begin; token < end; ++token) {
    const char *from = at(args.qkv, token * (q_bytes + 2 * kv_bytes));
    char *q = at(args.q, token * q_bytes), *k = at(args.k, token * kv_bytes), *v = at(args.v, token * kv_bytes);
    if (!args.per_head) {
      copy(q, from, q_bytes);
      copy(k, from + q_bytes, kv_bytes);
      copy(v, from + q_bytes + kv_bytes, kv_bytes);
      continue;
    }
    for (int64_t h = 0; h < args.heads; ++h, from += 3 * head) {
      copy(q + h * head, from, head);
      copy(k + h * head, from + head, head);
      copy(v + h * head, from + 2 * head, head);
    }
  }
}

void rotary(const RotaryArgs &args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { rotary_tokens<T>(args, begin, end); });
}

void store_kv(const StoreKvArgs &args, int64_t begin, int64_t end) {
  const int64_t row = args.head_dim * args.element_bytes;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t block = args.slots[token] / args.block_size, offset = args.slots[token] % args.block_size;
    for (int64_t head = 0; head < args.kv_heads; ++head) {
      const int64_t from = (token * args.kv_heads + head) * row;
      const int64_t to = block * args.block_stride * args.element_bytes + (head * args.block_size + offset) * row;
      copy(at(args.key_cache, to), at(args.k, from), row);
      copy(at(args.value_cache, to), at(args.v, from), row);
    }
  }
}

} // namespace corebound::kernels::COREBOUND_VARIANT
