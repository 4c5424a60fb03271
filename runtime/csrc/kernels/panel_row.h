// Sums of a panel for one row, which is what decode waits for, with AVX-512.
//
// The panel is read as two streams, its first and its second half, sixteen lines of one and sixteen of the other, or
// the second one after the first, which is one stream. What keeps the bandwidth of two, each worth 5 to 10 % on the one
// processor with AMX where it was tried:
// - line by line: not several loads and then the chain of pace.h for each;
// - one load for a line, and few load instructions in a loop: with 64 of them it was 15 % slower or not by where the
//   linker had put it (the prefetcher tells streams apart by the addresses of their loads, perhaps that is why);
// - as little else as possible is read from memory meanwhile, a line in a panel costs as much: see finish_panel and the
//   scales below. Biases are read, and so are the scales of a last block of an odd number.
#pragma once

#include "kernels/pace.h"
#include "kernels/panel_sums.h"

COREBOUND_BEGIN_VARIANT

// What a panel is read with: the pace, and whether its halves are two streams. One cycle more than other rows: with
// four, five and eight, int8 and bf16 came more slowly as two streams.
struct AtOnce : Pace<false> {
  static constexpr bool two_streams = true;
};
struct Paced : Pace<true, 6> {
  static constexpr bool two_streams = true;
};
struct OneStream : OneStreamPace {
  static constexpr bool two_streams = false;
};

// The first word of a line that has just been loaded, and which the compiler is to keep: it would load it again.
template <class P> inline uint64_t word_of(__m512i &line) {
  uint64_t word = 0;
  if constexpr (P::paced) {
    asm volatile("vmovq %x1, %0" : "=r"(word), "+v"(line));
  }
  return word;
}

// Where a turn of a stream fetches, in a register of its own.
inline const char *fetched(const char *from, int64_t ahead) {
  const char *further = from + ahead;
  asm volatile("" : "+r"(further));
  return further;
}

// Behind the first half of a panel lies what the second stream has read already, so the end of the first one fetches
// where the next panel's second half begins.
struct FirstHalf {
  const char *near_end;
  int64_t over_middle;
  FirstHalf(const char *middle, int64_t panel_bytes)
      : near_end(middle - ahead_bytes), over_middle(ahead_bytes + panel_bytes) {}
  int64_t ahead(const char *at) const { return at >= near_end ? over_middle : ahead_bytes; }
};

// A stream of bf16 weights.
class WeightStream {
public:
  static constexpr int64_t turn_pairs = 4;

  WeightStream(const char *weights, const uint16_t *x) : weights_(weights), x_(x) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      sums_[j] = Sums16::zero();
    }
  }
  const char *at() const { return weights_; }
  Sums16 sum(int j) const { return sums_[j]; }

  // The next sixteen lines, with those `ahead` bytes further on.
  template <class P> void add_turn(P &pace, int64_t ahead) {
    const char *further = fetched(weights_, ahead);
#pragma GCC unroll 1
    for (int64_t pair = 0; pair < turn_pairs; ++pair) {
      const InputPair input = InputPair::load(x_);
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j) {
        pace.fetch(further + 64 * j);
        Pairs16 line = Pairs16::load(weights_ + 64 * j);
        const uint64_t word = word_of<P>(line.v);
        sums_[j] = add_products(sums_[j], line, input);
        pace.follow(word);
      }
      weights_ += 256;
      further += 256;
      x_ += 2;
    }
    pace.turn();
  }

private:
  const char *weights_;
  const uint16_t *x_;
  Sums16 sums_[4];
};

template <class P> inline void sum_weights_of_row(const char *weights, int64_t pairs, const uint16_t *x, float *sums) {
  const int64_t half = pairs / 2; // inputs are padded to 32, so it is a multiple of eight
  WeightStream first(weights, x), second(weights + half * 256, x + 2 * half);
  const FirstHalf reach(second.at(), pairs * 256);
  P pace;
  if constexpr (P::two_streams) {
    for (int64_t pair = 0; pair < half; pair += WeightStream::turn_pairs) {
      first.add_turn(pace, reach.ahead(first.at()));
      second.add_turn(pace, ahead_bytes);
    }
  } else {
    for (int64_t pair = 0; pair < half; pair += WeightStream::turn_pairs) {
      first.add_turn(pace, ahead_bytes);
    }
    for (int64_t pair = 0; pair < half; pair += WeightStream::turn_pairs) {
      second.add_turn(pace, ahead_bytes);
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    (Sums16::load(sums + 16 * j) + (first.sum(j) + second.sum(j))).store(sums + 16 * j);
  }
}

COREBOUND_END_VARIANT
