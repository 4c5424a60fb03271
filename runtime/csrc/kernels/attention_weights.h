// The online softmax of prefill: scores of a block of rows become weights rounded to bf16, which is what products take.
// A row's sum is that of the rounded weights, so that they add up to one whatever the rounding did.
#pragma once

#include "kernels/attention_blocks.h"

COREBOUND_BEGIN_VARIANT

// 2^x for x <= 0 to 2^-13.5 of the result, where bf16 keeps 2^-9; zero far below. NaN stays NaN.
inline Vec power_of_two(Vec x) {
#ifdef __AVX512F__
  constexpr int floor_of = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  const Vec r = {_mm512_reduce_ps(x.v, floor_of)}; // x - floor(x), by which scalef raises
  Vec p = fma(Vec::set(0.07706705F), r, Vec::set(0.22764498F));
  p = fma(p, r, Vec::set(0.69511679F));
  p = fma(p, r, Vec::set(1.0F));
  return {_mm512_scalef_ps(p.v, x.v)};
#else
  // exp keeps its results normal, so that what should be zero is a little less than what is taken off here.
  return max(Vec::zero(), exp(x * Vec::set(0.693147181F)) - Vec::set(2e-38F));
#endif
}

// A block of rows of an item and keys [begin, end) of a block of keys, multiples of 32; the first key of the block of
// keys is at position `block` of the sequence.
struct Span {
  int64_t row, rows, block, begin, end;
};

constexpr float log2_of_e = 1.44269504F, lowest = -3e38F;
constexpr int64_t score_panel = block_rows * key_tile; // floats of 64 keys' scores

inline float *score_place(float *row, int64_t key) { return row + key / key_tile * score_panel + key % key_tile; }

inline Vec numbers_from(int64_t key) {
  return Vec::load(ramp.values + key % key_tile) + Vec::set(static_cast<float>(key / key_tile * key_tile));
}

// Turns raw scores into exponents of two, where it takes more than a positive factor.
inline void make_exponents(float *row, const Span &span, float scale, float slope, float start) {
  const Vec scales = Vec::set(scale), slopes = Vec::set(slope), starts = Vec::set(start);
  for (int64_t key = span.begin; key < span.end; key += Vec::width) {
    float *at = score_place(row, key);
    fma(Vec::load(at), scales, fma(numbers_from(key), slopes, starts)).store(at);
  }
}

// What a row does not see, keys before `hidden` and from `visible` on, becomes minus infinity.
inline void mask(float *row, const Span &span, int64_t hidden, int64_t visible) {
  const Vec nothing = Vec::set(-__builtin_inff());
  for (int64_t key = span.begin; key < hidden && key < span.end; key += Vec::width) {
    float *at = score_place(row, key);
    where_negative(numbers_from(key) - Vec::set(static_cast<float>(hidden)), nothing, Vec::load(at)).store(at);
  }
  int64_t key = visible < span.begin ? span.begin : visible / Vec::width * Vec::width;
  for (; key < span.end; key += Vec::width) {
    float *at = score_place(row, key);
    where_negative(numbers_from(key) - Vec::set(static_cast<float>(visible)), Vec::load(at), nothing).store(at);
  }
}

inline Vec largest_scores(float *row, const Span &span) {
  Vec top = Vec::load(score_place(row, span.begin)), other = top;
  for (int64_t key = span.begin; key < span.end; key += 32) {
    const float *at = score_place(row, key);
    for (int64_t i = 0; i < 32; i += 2 * Vec::width) {
      top = max(top, Vec::load(at + i));
      other = max(other, Vec::load(at + i + Vec::width));
    }
  }
  return max(top, other);
}

// The weights of 32 keys, 2^(scores * scale - shift), rounded; adds them to `sum`.
inline void weigh(const float *scores, Vec scale, Vec shift, uint16_t *weights, Vec &sum) {
#ifdef __AVX512BF16__
  const Vec first = power_of_two(fma(Vec::load(scores), scale, shift));
  const Vec second = power_of_two(fma(Vec::load(scores + 16), scale, shift));
  const __m512bh both = _mm512_cvtne2ps_pbh(second.v, first.v);
  _mm512_storeu_si512(weights, reinterpret_cast<__m512i>(both));
  const __m512i ones = _mm512_set1_epi16(0x3f80);
  sum = {_mm512_dpbf16_ps(sum.v, both, reinterpret_cast<__m512bh>(ones))};
#else
  for (int64_t i = 0; i < 32; i += Vec::width) {
    bf16 *rounded = reinterpret_cast<bf16 *>(weights + i);
    power_of_two(fma(Vec::load(scores + i), scale, shift)).store(rounded);
    sum = sum + Vec::load(rounded);
  }
#endif
}

// Raises the largest exponents of the rows by those of this span, [row - span.row]; `shift` is what is taken off the
// exponents, `shrink` the factor for what was summed before.
inline void raise_largest(const Bf16Work &work, const Span &span, float scale, const Vec *tops, float *shift,
                          float *shrink) {
  float found[block_rows];
  for (int64_t r = 0; r < span.rows; ++r) {
    found[r] = tops[r].largest();
  }
  for (int64_t r = span.rows; r < block_rows; ++r) {
    found[r] = 0;
  }
  const Vec bottom = Vec::set(lowest); // stands for a row that has seen nothing yet
  for (int64_t r = 0; r < span.rows; r += Vec::width) {
    float *largest = work.largest + span.row + r;
    const Vec before = Vec::load(largest), now = max(before, Vec::load(found + r) * Vec::set(scale));
    now.store(largest);
    (Vec::zero() - max(bottom, now)).store(shift + r);
    exp((max(bottom, before) - max(bottom, now)) * Vec::set(1.0F / log2_of_e)).store(shrink + r);
  }
}

// Makes weights of the scores of a span. A score that is NaN makes its weight NaN, and by the sum the whole row.
inline void weigh_rows(const AttentionArgs &args, const Item &item, const Bf16Work &work, const Span &span) {
  const int64_t heads = item.group.count;
  const bool plain = !args.alibi_slopes && args.scale > 0;
  const float scale = plain ? args.scale * log2_of_e : 1.0F;
  Vec tops[block_rows];
  for (int64_t r = 0; r < span.rows; ++r) {
    const int64_t position = item.first_position + (span.row + r) / heads;
    float *row = work.scores + r * key_tile;
    if (!plain) {
      const float slope = slope_of(args, item.group.first + (span.row + r) % heads) * log2_of_e;
      make_exponents(row, span, args.scale * log2_of_e, slope, slope * static_cast<float>(span.block - position));
    }
    mask(row, span, first_seen(args, position) - span.block, position + 1 - span.block);
    tops[r] = largest_scores(row, span);
  }
  float shift[block_rows], shrink[block_rows];
  raise_largest(work, span, scale, tops, shift, shrink);
  for (int64_t r = 0; r < span.rows; ++r) {
    const Vec scales = Vec::set(scale), shifts = Vec::set(shift[r]);
    Vec total = Vec::zero();
    float *row = work.scores + r * key_tile, *sums = work.sums + (span.row + r) * 16;
    for (int64_t key = span.begin; key < span.end; key += 32) {
      weigh(score_place(row, key), scales, shifts, row_place(work.weights, block_keys, r, key), total);
    }
    fma(Vec::load(sums), Vec::set(shrink[r]), total).store(sums);
    for (int64_t chunk = 0; chunk < work.chunks; ++chunk) {
      shrink_row(work.result(chunk, span.row + r), 64, shrink[r]);
    }
  }
}

COREBOUND_END_VARIANT
