// Sums of a quantised panel for one row, with AVX-512: the streams and the paces of panel_row.h.
#pragma once

#include "kernels/panel_codes.h"
#include "kernels/panel_row.h"

COREBOUND_BEGIN_VARIANT

// A stream of codes, block by block.
template <bool nibbles> class CodeStream {
public:
  static constexpr int64_t quad_bytes = nibbles ? 128 : 256; // four inputs
  static constexpr int64_t turn_inputs = 1024 / quad_bytes * 4;
  static constexpr int32_t middle = nibbles ? 8 : 128;

  // From block `index` on.
  CodeStream(const PanelMatrix &matrix, const char *panel, const PanelInput &in, int64_t index)
      : matrix_(matrix), code_bytes_(matrix.group_inputs * matrix.input_bytes()), index_(index) {
    const int64_t at = index * matrix.block_inputs();
    group_ = panel + at / matrix.group_inputs * matrix.group_bytes();
    codes_ = group_ + at % matrix.group_inputs * matrix.input_bytes();
    high_ = in.rounded.high + at;
    low_ = in.rounded.low + at;
  }
  const char *at() const { return codes_; }

  // Begins a block. Its sums begin at the middle of the codes times the inputs' sum, so that they end centred. Upper
  // nibbles are not shifted down: a whole byte is 16 times the upper one and the lower one, whose sum is there too.
  void begin(const PanelInput &in) {
    sum_ = in.rounded.sums[index_];
    scale_ = in.rounded.scales[index_];
    const auto sum = static_cast<int32_t>(sum_);
    const __m512i even = _mm512_set1_epi32(-middle * sum);
    const __m512i odd = nibbles ? _mm512_set1_epi32(-(16 * middle + middle) * sum) : even;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      highs_[j] = Counts16::zero();
      lows_[j] = {j % 2 == 0 ? even : odd};
    }
  }

  // The next sixteen lines, with those `ahead` bytes further on.
  template <class P> void add_turn(P &pace, int64_t ahead) {
    const char *further = fetched(codes_, ahead);
#pragma GCC unroll 1
    for (int64_t i = 0; i < turn_inputs; i += 4) {
      const InputQuad high = InputQuad::load(high_), low = InputQuad::load(low_);
      Quads16 line{};
      uint64_t word = 0;
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) {
        if (!nibbles || j % 2 == 0) {
          const int64_t at = nibbles ? 32 * j : 64 * j;
          pace.fetch(further + at);
          line = Quads16::load(codes_ + at);
          word = word_of<P>(line.v);
        }
        const Quads16 codes = nibbles && j % 2 == 0 ? low_nibbles(line) : line;
        highs_[j] = add_products(highs_[j], codes, high);
        lows_[j] = add_products(lows_[j], codes, low);
        if (!nibbles || j % 2 == 1) {
          pace.follow(word);
        }
      }
      codes_ += quad_bytes;
      further += quad_bytes;
      high_ += 4;
      low_ += 4;
    }
    pace.turn();
  }

  // Ends a block of a panel that is one group, whose scales come when all of it has been read: adds what is to be
  // multiplied by them, and for an asymmetric scheme, what is to be multiplied by the zero points too.
  void finish_unscaled(float *unscaled, float &offset) {
    const Vec scale = Vec::set(scale_);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      fma(count(j), scale, Vec::load(unscaled + 16 * j)).store(unscaled + 16 * j);
    }
    offset += scale_ * sum_;
    ++index_;
  }

  // Ends a block. Behind the last of a group lie its scales, which have been fetched where lines are, so that as much
  // of what comes `ahead` has not.
  template <class P> void finish(P &pace, int64_t ahead, float *sums) {
    const char *scales = group_ + code_bytes_;
    switch (matrix_.scale_kind) {
    case ScaleKind::float32:
      add_block(reinterpret_cast<const float *>(scales), sums);
      break;
    case ScaleKind::bfloat16:
      add_block(reinterpret_cast<const bf16 *>(scales), sums);
      break;
    case ScaleKind::float16:
      add_block(reinterpret_cast<const f16 *>(scales), sums);
      break;
    }
    ++index_;
    if (codes_ == scales) {
      for (int64_t at = 0; at < matrix_.group_bytes() - code_bytes_; at += 64) {
        pace.fetch(codes_ + ahead + at);
      }
      codes_ = group_ = group_ + matrix_.group_bytes();
    }
  }

private:
  static __m512i joined(Counts16 high, Counts16 low) { return _mm512_add_epi32(_mm512_slli_epi32(high.v, 7), low.v); }
  Vec count(int j) const {
    __m512i count = joined(highs_[j], lows_[j]);
    if (nibbles && j % 2 == 1) {
      count = _mm512_srai_epi32(_mm512_sub_epi32(count, joined(highs_[j - 1], lows_[j - 1])), 4);
    }
    return {_mm512_cvtepi32_ps(count)};
  }

  template <class T> void add_block(const T *scales, float *sums) const {
    const auto *zeros = reinterpret_cast<const uint8_t *>(scales + panel_outputs);
    const Vec scale = Vec::set(scale_), minus_sum = Vec::set(-sum_);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Vec value = count(j);
      if (matrix_.asymmetric) {
        const __m128i points = _mm_loadu_si128(reinterpret_cast<const __m128i *>(zeros + 16 * j));
        const __m512i shift = _mm512_sub_epi32(_mm512_cvtepu8_epi32(points), _mm512_set1_epi32(middle));
        value = fma({_mm512_cvtepi32_ps(shift)}, minus_sum, value);
      }
      fma(value, scale * Vec::load(scales + 16 * j), Vec::load(sums + 16 * j)).store(sums + 16 * j);
    }
  }

  const PanelMatrix matrix_;
  const int64_t code_bytes_;
  int64_t index_;
  const char *group_, *codes_;
  const int8_t *high_, *low_;
  float sum_ = 0, scale_ = 0;
  Counts16 highs_[4], lows_[4];
};

// What a panel of one group adds up before it is scaled stays finite below that scale of its inputs.
inline bool fits_unscaled(const PanelMatrix &matrix, const PanelInput &in) {
  Vec largest = Vec::zero();
  for (int64_t block = 0; block < matrix.num_blocks(); block += Vec::width) {
    largest = max(load_upto(in.rounded.scales + block, matrix.num_blocks() - block), largest);
  }
  return largest.largest() < 1e24F;
}

// What half of a panel adds up: for a panel of one group what is to be multiplied by its scales, else the sums
// themselves.
struct HalfSums {
  alignas(64) float values[panel_outputs] = {};
  float offset = 0;

  template <bool nibbles, class P> void finish(CodeStream<nibbles> &stream, bool one_group, P &pace, int64_t ahead) {
    if (one_group) {
      stream.finish_unscaled(values, offset);
    } else {
      stream.finish(pace, ahead, values);
    }
  }
};

inline void add_halves(const PanelMatrix &matrix, const char *panel, bool one_group, const HalfSums &first,
                       const HalfSums &second, float *sums) {
  if (!one_group) {
    for (int64_t i = 0; i < panel_outputs; i += Vec::width) {
      const Vec both = Vec::load(first.values + i) + Vec::load(second.values + i);
      (Vec::load(sums + i) + both).store(sums + i);
    }
    return;
  }
  const GroupScales of(matrix, panel + matrix.group_inputs * matrix.input_bytes());
  const Vec minus_offset = Vec::set(-(first.offset + second.offset));
  const Vec middle = Vec::set(matrix.kind == WeightKind::int4 ? 8.0F : 128.0F);
  for (int64_t i = 0; i < panel_outputs; i += Vec::width) {
    const Vec both = Vec::load(first.values + i) + Vec::load(second.values + i);
    const Vec value = fma(Vec::load(of.zeros + i) - middle, minus_offset, both);
    fma(value, Vec::load(of.scales + i), Vec::load(sums + i)).store(sums + i);
  }
}

// The blocks of both halves. Returns how many are done: a last odd one is not, nor one of fewer inputs. Each half has
// sums of its own, so that results are the same whether they are read side by side or one after the other.
template <bool nibbles, class P>
inline int64_t sum_codes_of_row(const PanelMatrix &matrix, const char *panel, const PanelInput &in, float *sums) {
  using Stream = CodeStream<nibbles>;
  const int64_t size = matrix.block_inputs(), half = matrix.padded_inputs / size / 2;
  const bool one_group = matrix.num_groups() == 1;
  if (half == 0 || (one_group && !fits_unscaled(matrix, in))) {
    return 0;
  }
  Stream first(matrix, panel, in, 0), second(matrix, panel, in, half);
  HalfSums of_first, of_second;
  const FirstHalf reach(second.at(), matrix.panel_bytes());
  P pace;
  if constexpr (P::two_streams) {
    for (int64_t block = 0; block < half; ++block) {
      first.begin(in);
      second.begin(in);
      for (int64_t at = 0; at < size; at += Stream::turn_inputs) { // blocks are 32 inputs or more: whole turns
        first.add_turn(pace, reach.ahead(first.at()));
        second.add_turn(pace, ahead_bytes);
      }
      of_first.finish(first, one_group, pace, reach.ahead(first.at()));
      of_second.finish(second, one_group, pace, ahead_bytes);
    }
  } else {
    const auto read = [&](Stream &stream, HalfSums &of_half) {
      for (int64_t block = 0; block < half; ++block) {
        stream.begin(in);
        for (int64_t at = 0; at < size; at += Stream::turn_inputs) {
          stream.add_turn(pace, ahead_bytes);
        }
        of_half.finish(stream, one_group, pace, ahead_bytes);
      }
    };
    read(first, of_first);
    read(second, of_second);
  }
  add_halves(matrix, panel, one_group, of_first, of_second, sums);
  return 2 * half;
}

COREBOUND_END_VARIANT
