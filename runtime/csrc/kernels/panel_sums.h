// Sums of a bf16 panel by pairs of inputs: decode in every variant, and prefill where there is no AMX.
#pragma once

#include <type_traits>

#include "kernels/pace.h"
#include "kernels/pairs.h"
#include "kernels/panel.h"

COREBOUND_BEGIN_VARIANT

// What a thread works with: a piece of the panel, widened, and sums [rows][64].
struct PanelScratch {
  float *piece, *sums;
  explicit PanelScratch(float *memory) : piece(memory), sums(memory + piece_floats) {}
};

// Four cycles: with two, six and eight, a row of bf16 came more slowly on Zen 4.
using OneStreamPace = Pace<true, 4, false>;

// Rows whose sums fit the registers beside the weights of a pair.
constexpr int rows_at_once = Vec::width == 16 ? 6 : 1;

// Chains of sums that go on side by side: a bf16 dot product takes about twelve cycles, two start in each.
template <int M> constexpr int chains = Vec::width < 16 ? 1 : M == 1 ? 4 : M == 2 ? 2 : 1;

template <int M> using RowSums = Sums16[M][4];

// sums += weights * x for one pair.
template <int M> inline void add_pair(RowSums<M> &sums, const char *weights, const uint16_t *x, int64_t stride) {
  const Pairs16 pair[4] = {Pairs16::load(weights), Pairs16::load(weights + 64), Pairs16::load(weights + 128),
                           Pairs16::load(weights + 192)};
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const InputPair input = InputPair::load(x + m * stride);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums[m][j] = add_products(sums[m][j], pair[j], input);
    }
  }
}

// With `lines` above 0, a part of the piece that comes next is fetched, so many lines of it behind each pair: rows that
// take turns with a piece are bound by arithmetic, and would wait for memory at the beginning of each. More than four
// rows keep a core busy enough to stay behind memory.
template <int M, class P, int lines>
inline void add_pairs(const char *weights, int64_t pairs, const uint16_t *x, int64_t stride, float *sums,
                      const char *next) {
  constexpr int U = chains<M>;
  std::conditional_t<(M > 4), Pace<false>, P> pace;
  RowSums<M> acc[U];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      acc[0][m][j] = Sums16::load(sums + m * panel_outputs + 16 * j);
#pragma GCC unroll 4
      for (int u = 1; u < U; ++u) {
        acc[u][m][j] = Sums16::zero();
      }
    }
  }
  // Inputs are padded to 32, so there are 16 pairs or a multiple.
  for (int64_t i = 0; i < pairs; i += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const char *from = weights + (i + u) * 256;
      add_pair<M>(acc[u], from, x + 2 * (i + u), stride);
#pragma GCC unroll 4
      for (int line = 0; line < 4; ++line) {
        pace.follow(from + 64 * line, from + 64 * line + ahead_bytes);
      }
    }
    pace.turn();
#pragma GCC unroll 8
    for (int line = 0; line < U * lines; ++line, next += 64) {
      __builtin_prefetch(next, 0, 2);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
      for (int u = 1; u < U; ++u) {
        acc[0][m][j] = acc[0][m][j] + acc[u][m][j];
      }
      acc[0][m][j].store(sums + m * panel_outputs + 16 * j);
    }
  }
}

// The same for a number of rows that is known only now, at most rows_at_once.
template <class P, int lines>
inline void add_few_rows(const char *weights, int64_t pairs, const uint16_t *x, int64_t stride, int64_t rows,
                         float *sums, const char *next) {
  if constexpr (rows_at_once > 1) {
    switch (rows) {
    case 2:
      return add_pairs<2, P, lines>(weights, pairs, x, stride, sums, next);
    case 3:
      return add_pairs<3, P, lines>(weights, pairs, x, stride, sums, next);
    case 4:
      return add_pairs<4, P, lines>(weights, pairs, x, stride, sums, next);
    case 5:
      return add_pairs<5, P, lines>(weights, pairs, x, stride, sums, next);
    case 6:
      return add_pairs<6, P, lines>(weights, pairs, x, stride, sums, next);
    }
  }
  add_pairs<1, P, lines>(weights, pairs, x, stride, sums, next);
}

// The same for any number of rows. The piece that comes next is fetched in two parts.
template <class P>
inline void add_rows(const char *weights, int64_t pairs, const uint16_t *x, int64_t stride, int64_t rows, float *sums) {
  if (rows <= rows_at_once) {
    return add_few_rows<P, 0>(weights, pairs, x, stride, rows, sums, nullptr);
  }
  const int64_t passes = (rows + rows_at_once - 1) / rows_at_once, bytes = pairs * 256;
  for (int64_t pass = 0; pass < passes; ++pass) {
    // Passes of like sizes, so that none is too short to fetch its part.
    const int64_t begin = rows * pass / passes, end = rows * (pass + 1) / passes;
    add_few_rows<Pace<false>, 2>(weights, pairs, x + begin * stride, stride, end - begin, sums + begin * panel_outputs,
                                 weights + bytes + pass % 2 * (bytes / 2));
  }
}

// Inputs of a piece of a panel, 16 KiB: rows that share it read it from the cache after the first few.
constexpr int64_t shared_inputs = 128;

inline void sum_pairs(const PanelMatrix &matrix, const char *panel, const PanelInput &in, float *sums) {
  const int64_t piece = in.rows > rows_at_once ? shared_inputs : matrix.padded_inputs;
  for (int64_t at = 0; at < matrix.padded_inputs; at += piece) {
    const int64_t left = matrix.padded_inputs - at, count = left < piece ? left : piece;
    const char *from = panel + at * matrix.input_bytes();
    switch (in.reading) {
    case Reading::at_once:
      add_rows<Pace<false>>(from, count / 2, in.x + at, in.stride, in.rows, sums);
      break;
    case Reading::paced:
      add_rows<Pace<true>>(from, count / 2, in.x + at, in.stride, in.rows, sums);
      break;
    case Reading::one_stream:
      add_rows<OneStreamPace>(from, count / 2, in.x + at, in.stride, in.rows, sums);
      break;
    }
  }
}

COREBOUND_END_VARIANT
