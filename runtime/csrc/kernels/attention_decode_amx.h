// One query of several heads that share a kv head, over any of its keys: scores of up to 512 keys, then their weights
// times their values, so that results shrink at most once for so many.
#pragma once

#include "kernels/attention_prefill_bf16.h"
#include "kernels/attention_tiles.h"

#ifdef __AMX_BF16__

COREBOUND_BEGIN_VARIANT

// What goes over the keys, and leaves the results in the end.
template <int H> class SharedAttention {
public:
  SharedAttention(const AttentionArgs &args, const Item &item, void *scratch)
      : args_(args), item_(item), work_(*static_cast<SingleWork<H> *>(scratch)), row_bytes_(args.head_dim * 2),
        chunks_(args.head_dim / 32), plain_(!args.alibi_slopes && args.scale > 0) {
    alignas(64) uint32_t rows[H][16] = {};
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (int64_t h = 0; h < item.group.count; ++h) {
        const int64_t row = item.first_token * args.heads + item.group.first + h;
        std::memcpy(rows[h], static_cast<const char *>(args.q) + row * row_bytes_ + chunk * 64, 64);
      }
      for (int64_t pair = 0; pair < 16; ++pair) {
        for (int64_t h = 0; h < H; ++h) {
          work_.queries[chunk][pair][h] = rows[h][pair];
        }
      }
    }
    for (int64_t i = 0; i < Vec::width; ++i) {
      const int64_t h = i % H;
      slopes_[i] = h < item.group.count ? slope_of(args, item.group.first + h) * log2_of_e : 0.0F;
      numbers_[i] = static_cast<float>(i / H);
    }
    fill(work_.results[0][0], chunks_ * 2 * H * 16, 0.0F);
  }

  void attend(int64_t begin, int64_t end) {
    locate(begin, end);
    {
      const SingleTiles<H> tiles(true);
      score(begin, end);
    }
    const Vec before = largest_, bottom = Vec::set(lowest);
    raise_largest();
    const Vec shrink = exp((max(bottom, before) - max(bottom, largest_)) * Vec::set(1.0F / log2_of_e));
    shrink.store(shrink_);
    sum_ = sum_ * shrink;
    const SingleTiles<H> tiles(false);
    switch (chunks_) {
    case 1:
      return add_values<1>();
    case 2:
      return add_values<2>();
    case 3:
      return add_values<3>();
    case 4:
      return add_values<4>();
    default:
      add_wide_values();
    }
  }

  // Leaves the results in `out`, or as a part. False where a number is none: the zero beside each weight times an
  // infinite value or NaN spoils the dimension beside that of the value.
  bool finish(const KeyRange &range) {
    Vec spoilt = Vec::zero(); // or NaN
    alignas(64) float sums[Vec::width], tops[Vec::width], row[max_head_dim];
    folded(sum_, [](Vec a, Vec b) { return a + b; }).store(sums);
    largest_.store(tops);
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const int64_t dim = args_.head_dim;
    for (int64_t h = 0; h < item_.group.count; ++h) {
      const int64_t head = item_.group.first + h;
      float *to = range.partials ? range.partials + head * attention_partial_floats(dim) : row;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        const Vec even = Vec::load(work_.results[chunk][h]), odd = Vec::load(work_.results[chunk][H + h]);
        spoilt = fma(even, Vec::zero(), fma(odd, Vec::zero(), spoilt));
        Vec{_mm512_permutex2var_ps(even.v, low, odd.v)}.store(to + chunk * 32);
        Vec{_mm512_permutex2var_ps(even.v, high, odd.v)}.store(to + chunk * 32 + 16);
      }
      if (range.partials) {
        to[dim] = tops[h] / log2_of_e;
        to[dim + 1] = sums[h];
      } else {
        write_row(row, sums[h], dim, static_cast<bf16 *>(args_.out) + (item_.first_token * args_.heads + head) * dim);
      }
    }
    return spoilt.sum() == 0.0F;
  }

private:
  // Bytes from the beginning of either cache to the row of a position.
  int64_t place(int64_t position, int64_t kv_head) const {
    const int64_t block = item_.blocks[position / args_.block_size], offset = position % args_.block_size;
    return block * args_.block_stride * 2 + (kv_head * args_.block_size + offset) * row_bytes_;
  }

  // Groups begin at multiples of their size, within a block. A value that is not seen may be NaN, and must not meet its
  // weight of zero.
  void locate(int64_t begin, int64_t end) {
    const int64_t first = begin / group_keys * group_keys;
    Places &at = places_;
    at.count = (end - first + group_keys - 1) / group_keys;
    at.bytes = group_keys * row_bytes_;
    at.next = 0;
    int64_t left_of_block = 0, from = 0;
    for (int64_t g = 0; g < at.count; ++g, from += at.bytes, left_of_block -= group_keys) {
      if (left_of_block == 0) { // block by block: a division for each group takes longer
        const int64_t position = first + g * group_keys;
        from = place(position, item_.group.kv_head);
        left_of_block = args_.block_size - position % args_.block_size;
      }
      at.stream[g] = at.keys[g] = static_cast<const char *>(args_.key_cache) + from;
      at.stream[at.count + g] = at.values[g] = static_cast<const char *>(args_.value_cache) + from;
      if (g < fetch_groups) {
        at.fetch();
      }
    }
    follow(end);
    while (at.next < fetch_groups) {
      at.fetch();
    }
    if (begin != first) {
      trim(0, begin - first, group_keys);
    }
    const int64_t left = end - first - (at.count - 1) * group_keys;
    if (left < group_keys) {
      trim(at.count - 1, at.count == 1 ? begin - first : 0, left);
    }
  }

  // Behind the values, the keys that are most often read next: those from `end` on, or of the next kv head.
  void follow(int64_t end) {
    const char **stream = places_.stream + 2 * places_.count;
    int64_t position = (end + group_keys - 1) / group_keys * group_keys, kv_head = item_.group.kv_head;
    for (int64_t i = 0; i < fetch_groups; ++i, position += group_keys) {
      if (position > item_.first_position && kv_head + 1 < args_.kv_heads) {
        position = first_seen(args_, item_.first_position) / group_keys * group_keys;
        ++kv_head;
      }
      const bool there = position <= item_.first_position;
      stream[i] = there ? static_cast<const char *>(args_.key_cache) + place(position, kv_head) : places_.keys[0];
    }
  }

  // Values [from, to) of a group, and zeros instead of the others.
  void trim(int64_t group, int64_t from, int64_t to) {
    char *edge = reinterpret_cast<char *>(work_.edges[group > 0]);
    const auto at = static_cast<size_t>(from * row_bytes_), end = static_cast<size_t>(to * row_bytes_);
    std::memmove(edge + at, places_.values[group] + at, end - at);
    std::memset(edge, 0, at);
    std::memset(edge + end, 0, static_cast<size_t>(places_.bytes) - end);
    places_.values[group] = edge;
  }

  void score(int64_t begin, int64_t end) {
    int64_t g = 0;
    for (; g + batch_groups <= places_.count; g += batch_groups) {
      score_batch(work_, places_, places_.keys + g, row_bytes_, work_.scores[g * group_keys]);
    }
    for (; g < places_.count; ++g) {
      places_.fetch();
      score_group(work_, places_.keys[g], row_bytes_, work_.scores[g * group_keys]);
    }
    const int64_t first = begin / group_keys * group_keys, last = first + places_.count * group_keys;
    if (!plain_) {
      make_exponents(first);
    }
    fill(work_.scores[0], (begin - first) * H, -__builtin_inff());
    fill(work_.scores[end - first], (last - end) * H, -__builtin_inff());
  }

  void make_exponents(int64_t first) {
    const Vec scale = Vec::set(args_.scale * log2_of_e), slopes = Vec::load(slopes_), numbers = Vec::load(numbers_);
    float *scores = work_.scores[0];
    for (int64_t i = 0; i < places_.count * group_keys * H; i += Vec::width) {
      const Vec distance = numbers + Vec::set(static_cast<float>(first + i / H - item_.first_position));
      fma(Vec::load(scores + i), scale, distance * slopes).store(scores + i);
    }
  }

  // The result for each head in all its lanes.
  template <class F> static Vec folded(Vec v, F &&f) {
    v = f(v, {_mm512_shuffle_f32x4(v.v, v.v, 0x4e)});
    return H == 8 ? v : f(v, {_mm512_shuffle_f32x4(v.v, v.v, 0xb1)});
  }

  void raise_largest() {
    Vec tops[4] = {Vec::load(work_.scores[0]), tops[0], tops[0], tops[0]};
    const float *scores = work_.scores[0];
    for (int64_t i = 0; i < places_.count * group_keys * H; i += 4 * Vec::width) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        tops[j] = max(tops[j], Vec::load(scores + i + j * Vec::width));
      }
    }
    const Vec top = max(max(tops[0], tops[1]), max(tops[2], tops[3]));
    largest_ = max(largest_, folded(top, [](Vec a, Vec b) { return max(a, b); }) * scale());
  }

  Vec scale() const { return Vec::set(plain_ ? args_.scale * log2_of_e : 1.0F); }
  Vec shift() const { return Vec::zero() - max(Vec::set(lowest), largest_); }

  // Makes the weights of the batch of groups from `first` on, and returns how many these are.
  int64_t weigh(int64_t first) {
    const int64_t left = places_.count - first, count = left < batch_groups ? left : batch_groups;
    const Vec scales = scale(), shifts = shift();
    for (int64_t g = 0; g < count; ++g) {
      places_.fetch();
      weigh_group<H>(work_.scores[(first + g) * group_keys], scales, shifts, work_.weights[g][0], sum_);
    }
    written_for_tiles();
    return count;
  }

  template <int C> void add_values() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t g = 0; g < places_.count; g += batch_groups) {
      const int64_t count = weigh(g);
      add_groups<H, C>(work_, places_.values + g, 0, count, row_bytes_);
    }
    store_sums(0);
    add_sums(0, C);
    if constexpr (C <= 2) {
      fill(shrink_, Vec::width, 1.0F);
      add_sums(2, C);
    }
  }

  void add_wide_values() {
    fill(work_.sums[0][0], chunks_ * 2 * H * 16, 0.0F);
    for (int64_t g = 0; g < places_.count; g += batch_groups) {
      const int64_t count = weigh(g);
      for (int64_t chunk = 0; chunk < chunks_; chunk += 4) {
        _tile_loadd(0, work_.sums[chunk], 64);
        _tile_loadd(1, work_.sums[chunk + 1], 64);
        _tile_loadd(2, work_.sums[chunk + 2], 64);
        _tile_loadd(3, work_.sums[chunk + 3], 64);
        add_groups<H, 4>(work_, places_.values + g, chunk * 64, count, row_bytes_);
        store_sums(chunk);
      }
    }
    add_sums(0, chunks_);
  }

  void store_sums(int64_t chunk) {
    _tile_stored(0, work_.sums[chunk], 64);
    _tile_stored(1, work_.sums[chunk + 1], 64);
    _tile_stored(2, work_.sums[chunk + 2], 64);
    _tile_stored(3, work_.sums[chunk + 3], 64);
  }

  // Shrinks the results and adds the sums from tile `from` on.
  void add_sums(int64_t from, int64_t count) {
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      for (int64_t r = 0; r < 2 * H; ++r) {
        float *result = work_.results[chunk][r];
        fma(Vec::load(result), Vec::set(shrink_[r % H]), Vec::load(work_.sums[from + chunk][r])).store(result);
      }
    }
  }

  const AttentionArgs &args_;
  const Item &item_;
  SingleWork<H> &work_;
  int64_t row_bytes_, chunks_;
  bool plain_; // scores times a positive factor are exponents
  Places places_;
  Vec largest_ = Vec::set(-__builtin_inff()), sum_ = Vec::zero();
  alignas(64) float slopes_[Vec::width], numbers_[Vec::width], shrink_[Vec::width];
};

inline bool shares_tiles(const AttentionArgs &args) {
  const int64_t dim = args.head_dim;
  return dim % 32 == 0 && (dim <= 128 || dim % 128 == 0) && args.block_size % group_keys == 0;
}

template <int H> void attend_shared(const AttentionArgs &args, const Item &item, const KeyRange &range, void *scratch) {
  SharedAttention<H> attention(args, item, scratch);
  for (int64_t begin = range.begin; begin < range.end; begin += attention_part_keys) {
    const int64_t end = begin + attention_part_keys;
    attention.attend(begin, end < range.end ? end : range.end);
  }
  if (!attention.finish(range)) {
    attend_bf16_queries(args, item, range, scratch);
  }
}

COREBOUND_END_VARIANT

#endif
