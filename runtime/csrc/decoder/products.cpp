// The products of a step: rows made ready for a matrix, its panels shared out, and the waits around them.
#include "decoder/walker.h"

#include <algorithm>

namespace corebound::decoder {
namespace {

using kernels::PanelInput;
using kernels::PanelOutput;

} // namespace

void Walker::prepare(const Matrix &matrix, Rows in, Range rows, int64_t all, int64_t place) {
  if (rows.begin >= rows.end) {
    return;
  }
  PanelInput part{};
  part.x = in.row(rows.begin);
  part.rows = rows.end - rows.begin;
  part.stride = in.stride;
  const int64_t first = place * max_inputs_ + rows.begin * matrix.padded_inputs;
  const int64_t block = place * max_blocks_ + rows.begin * matrix.num_blocks();
  if (wants_tiles(matrix, all)) {
    kernels_.make_tiles(part, matrix.padded_inputs, tiles_ + first, 0, (part.rows + 15) / 16);
  } else if (wants_rounding(matrix, all)) {
    kernels_.round_rows(matrix, part, kernels::rounded_for(kernels_, rounded_.from(first, block), all));
  }
}

void Walker::multiply(Member &member, const Matrix &matrix, Rows in, int64_t rows, const PanelOutput &out,
                      const Matrix *next, bool prepared) {
  const bool alone = rounds_alone(matrix, rows);
  if (!prepared && (wants_tiles(matrix, rows) || wants_rounding(matrix, rows))) {
    const Range tiles = tiles_of(member, rows);
    prepare(matrix, in, {tiles.begin * 16, std::min(tiles.end * 16, rows)}, rows);
    wait(&matrix, member);
  }
  PanelInput input = input_of(matrix, in, rows, 0);
  if (alone) {
    round_alone(member, matrix, input);
  }
  Shares &mine = shares_[member.turn % 3];
  // Everyone has left the product before the last one, so nobody takes from these shares now.
  if (member.index == 0 && next) {
    shares_[(member.turn + 1) % 3].deal(next->num_panels(), team_.size());
  }
  ++member.turn;
  float *scratch = member.panel.get(kernels::panel_scratch_floats(rows));
  const int64_t most = rows > 1 ? kernels::max_panels_together : 1;
  for (Shares::Run run = mine.take(member.index, most); run.count > 0; run = mine.take(member.index, most)) {
    kernels_.panel_products(matrix, run.first, run.count, input, out, scratch);
  }
}

PanelInput Walker::input_of(const Matrix &matrix, Rows in, int64_t rows, int64_t place) const {
  PanelInput input = {in.data, nullptr, {}, rows, in.stride, reading_};
  if (wants_tiles(matrix, rows)) {
    input.tiles = tiles_ + place * max_inputs_;
  } else if (quantised_) {
    input.rounded = kernels::rounded_for(kernels_, rounded_.from(place * max_inputs_, place * max_blocks_), rows);
  }
  return input;
}

// Makes the member's own copy of the rows in whole numbers.
void Walker::round_alone(Member &member, const Matrix &matrix, PanelInput &input) const {
  const int64_t elements = input.rows * matrix.padded_inputs, blocks = input.rows * matrix.num_blocks();
  input.rounded = kernels::rounded_for(kernels_, member.rounded.get(elements, blocks), input.rows);
  kernels_.round_rows(matrix, input, input.rounded);
}

// A barrier, at which who waits fetches the beginning of what it will read next.
void Walker::wait(const Matrix *next, const Member &member) {
  if (!next) {
    return team_.barrier();
  }
  constexpr int64_t lines = 4, reach_bytes = 64 << 10;
  const int64_t first = next->num_panels() * member.index / team_.size();
  // A single row may read both halves of a panel side by side.
  const char *at = next->panel(first), *end = at + std::min(reach_bytes, next->panel_bytes() / 2);
  team_.barrier([&] {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) {
      __builtin_prefetch(at, 0, 2);
      __builtin_prefetch(at + next->panel_bytes() / 2, 0, 2);
    }
  });
}

Walker::Range Walker::tiles_of(const Member &member, int64_t rows) const {
  const int64_t tiles = (rows + 15) / 16;
  return {tiles * member.index / team_.size(), tiles * (member.index + 1) / team_.size()};
}

bool Walker::rounds_alone(const Matrix &matrix, int64_t rows) const {
  return matrix.kind != kernels::WeightKind::bfloat16 && rows <= 2;
}

bool Walker::wants_rounding(const Matrix &matrix, int64_t rows) const {
  return kernels::reads_whole_numbers(kernels_, matrix, rows) && !rounds_alone(matrix, rows);
}

bool Walker::wants_tiles(const Matrix &matrix, int64_t rows) const {
  return kernels::reads_tiles(kernels_, matrix, rows);
}

} // namespace corebound::decoder
