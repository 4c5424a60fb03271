// Layers with experts: the router scores all of them, and each row goes through the best few.
//
// Products are walked expert by expert: a step of one row streams the panels of the chosen experts alone, one expert
// after the other; several rows are sorted by expert first, and each expert's panels are read once for all of its rows.
// What becomes of a row does not depend on the threads: its experts are added in their order.
#include "decoder/walker.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "decoder/bf16.h"

namespace corebound::decoder {

using kernels::Activation;

// The best of a softmax over all experts, the lower of equal ones first; then in the order of the experts. They are
// distinct whatever the scores are, NaN too: all memory is for experts that have a row once.
void Walker::choose(int64_t row) {
  constexpr float taken = -1.0F; // no part of a softmax
  const int64_t experts = model_.num_experts, chosen = model_.num_chosen;
  float *scores = mixture_.scores.data() + row * (experts + 1);
  Choice *choices = mixture_.choices.data() + row * choices_of_row();
  const float largest = *std::max_element(scores, scores + experts);
  float sum = 0.0F;
  for (int64_t e = 0; e < experts; ++e) {
    scores[e] = std::exp(scores[e] - largest);
    sum += scores[e];
  }
  float kept = 0.0F;
  for (int64_t c = 0; c < chosen; ++c) {
    int64_t best = -1;
    for (int64_t e = 0; e < experts; ++e) {
      if (scores[e] != taken && (best < 0 || scores[e] > scores[best])) {
        best = e;
      }
    }
    choices[c] = {static_cast<int32_t>(best), 0, scores[best]};
    kept += scores[best];
    scores[best] = taken;
  }
  if (std::isnan(sum)) { // then all of the softmax is, as torch has it, whichever experts were chosen
    kept = sum;
  }
  std::sort(choices, choices + chosen, [](const Choice &a, const Choice &b) { return a.expert < b.expert; });
  for (int64_t c = 0; c < chosen; ++c) {
    choices[c].weight /= model_.renormalised_experts ? kept : sum;
  }
  if (model_.shared_expert) {
    choices[chosen] = {static_cast<int32_t>(experts), 0, 1.0F / (1.0F + std::exp(-scores[experts]))};
  }
}

// By one member: which rows go through which experts, and where their parts lie. Each expert's begin at a whole tile.
void Walker::group(const Layer &layer, int64_t rows) {
  const int64_t each = choices_of_row(), all = rows * each;
  Choice *choices = mixture_.choices.data();
  int32_t *counts = mixture_.counts.get(model_.num_experts + 1);
  std::fill(counts, counts + model_.num_experts + 1, 0);
  for (int64_t i = 0; i < all; ++i) {
    ++counts[choices[i].expert];
  }
  mixture_.runs.clear();
  int64_t first = 0, tiles = 0, inner = 0, outer = 0;
  for (int64_t e = 0; e <= model_.num_experts; ++e) {
    if (counts[e] == 0) {
      continue;
    }
    const Expert &expert = layer.experts[e];
    mixture_.runs.push_back({&expert, first, counts[e], tiles, inner, outer});
    // What pads the inputs of this expert may have been another's, whose row was here before.
    const int64_t written = expert.mlp_in.num_panels() * (expert.mlp_in.gated ? 32 : 64);
    const int64_t padding = expert.mlp_out.padded_inputs - written;
    for (int64_t row = first; padding > 0 && row < first + counts[e]; ++row) {
      std::memset(mixed_.row(row) + written, 0, static_cast<size_t>(padding) * sizeof(uint16_t));
    }
    counts[e] = static_cast<int32_t>(first); // from here on the place of the next row
    tiles += (mixture_.runs.back().rows + 15) / 16;
    first = 16 * tiles;
    inner += expert.mlp_in.num_panels();
    outer += expert.mlp_out.num_panels();
  }
  mixture_.tiles = tiles;
  mixture_.inner_panels = inner;
  mixture_.outer_panels = outer;
  int32_t *sources = mixture_.sources.data();
  for (int64_t i = 0; i < all; ++i) {
    choices[i].place = counts[choices[i].expert]++;
    sources[choices[i].place] = static_cast<int32_t>(i / each);
  }
}

// The rows of each expert, next to each other and as its matrix wants them; `gather` takes them from `normed_` first.
void Walker::prepare_runs(Member &member, Matrix Expert::*which, Rows in, bool gather) {
  const int64_t begin = mixture_.tiles * member.index / team_.size(),
                end = mixture_.tiles * (member.index + 1) / team_.size();
  for (const Run &run : mixture_.runs) {
    const int64_t from = std::max(begin, run.first_tile), to = std::min(end, run.first_tile + (run.rows + 15) / 16);
    for (int64_t tile = from; tile < to; ++tile) {
      const int64_t row = 16 * (tile - run.first_tile), stop = std::min(row + 16, run.rows);
      for (int64_t i = row; gather && i < stop; ++i) {
        std::memcpy(in.row(run.first + i), normed_.row(mixture_.sources.data()[run.first + i]),
                    static_cast<size_t>(in.stride) * sizeof(uint16_t));
      }
      const Rows rows = {in.row(run.first), in.stride};
      prepare(run.expert->*which, rows, {row, stop}, run.rows, run.first);
    }
  }
}

void Walker::multiply_runs(Member &member, Matrix Expert::*which, Rows in, Rows out) {
  const bool inner = which == &Expert::mlp_in, in_place = in.data == normed_.data;
  const auto activation = inner ? static_cast<Activation>(model_.activation) : Activation::none;
  const auto first_panel = [&](const Run &run) { return inner ? run.inner : run.outer; };
  Shares &mine = shares_[member.turn % 3];
  ++member.turn;
  const Run *before = nullptr;
  kernels::PanelInput input{};
  for (int64_t item = mine.take(member.index); item >= 0; item = mine.take(member.index)) {
    const auto after = std::upper_bound(mixture_.runs.begin(), mixture_.runs.end(), item,
                                        [&](int64_t panel, const Run &run) { return panel < first_panel(run); });
    const Run &run = *(after - 1);
    const Matrix &matrix = run.expert->*which;
    if (&run != before) {
      before = &run;
      input = input_of(matrix, {in.row(in_place ? 0 : run.first), in.stride}, run.rows, run.first);
      if (rounds_alone(matrix, run.rows)) {
        round_alone(member, matrix, input);
      }
    }
    kernels_.panel_product(matrix, item - first_panel(run), input,
                           {out.row(run.first), nullptr, nullptr, out.stride, activation}, member.panel.data());
  }
}

void Walker::mix(Member &member, const Layer &layer, int64_t rows, const Matrix &next) {
  multiply(member, layer.router, normed_, rows,
           {nullptr, mixture_.scores.data(), nullptr, model_.num_experts + 1, Activation::none}, nullptr, true);
  team_.barrier();
  const int64_t size = team_.size();
  for (int64_t row = rows * member.index / size; row < rows * (member.index + 1) / size; ++row) {
    choose(row);
  }
  team_.barrier();
  if (member.index == 0) {
    group(layer, rows);
    shares_[member.turn % 3].deal(mixture_.inner_panels, team_.size());
    shares_[(member.turn + 1) % 3].deal(mixture_.outer_panels, team_.size());
  }
  team_.barrier();
  const bool one = rows == 1; // which every expert reads where it is
  if (!one) {
    prepare_runs(member, &Expert::mlp_in, gathered_, true);
    team_.barrier();
  }
  multiply_runs(member, &Expert::mlp_in, one ? normed_ : gathered_, mixed_);
  team_.barrier();
  if (!one) {
    prepare_runs(member, &Expert::mlp_out, mixed_, false);
    team_.barrier();
  }
  if (member.index == 0) { // everyone has left the product of the router, whose shares these were
    shares_[(member.turn + 1) % 3].deal(next.num_panels(), team_.size());
  }
  multiply_runs(member, &Expert::mlp_out, mixed_, routed_);
  wait(&next, member);
  add_experts(member, rows);
}

// Sums the parts of each row into x_; who normalises these rows next is who adds them.
void Walker::add_experts(Member &member, int64_t rows) {
  const int64_t each = choices_of_row(), hidden = model_.hidden;
  const Range tiles = tiles_of(member, rows);
  for (int64_t row = tiles.begin * 16; row < std::min(tiles.end * 16, rows); ++row) {
    const Choice *choices = mixture_.choices.data() + row * each;
    uint16_t *x = x_.row(row);
    float *sums = member.sums.data();
    std::fill(sums, sums + hidden, 0.0F);
    for (int64_t c = 0; c < each; ++c) {
      const uint16_t *part = routed_.row(choices[c].place);
      const float weight = choices[c].weight;
      for (int64_t i = 0; i < hidden; ++i) {
        sums[i] += weight * from_bf16(part[i]);
      }
    }
    for (int64_t i = 0; i < hidden; ++i) {
      x[i] = to_bf16(sums[i]);
    }
  }
  if (!alone()) { // one member sums over the ranks for all
    team_.barrier();
  }
}

// Rows that the parts of so many rows take, whichever experts they choose.
int64_t Walker::mixed_rows(int64_t rows) const {
  const int64_t each = choices_of_row(), all = rows * each;
  return (all + 15 * std::min(all, model_.num_experts + 1) + 15) / 16 * 16;
}

void Walker::make_room_for_experts(int64_t tokens) {
  const int64_t rows = mixed_rows(tokens);
  mixture_.scores.get(tokens * (model_.num_experts + 1));
  mixture_.choices.get(tokens * choices_of_row());
  mixture_.counts.get(model_.num_experts + 1);
  mixture_.sources.get(rows);
  mixture_.runs.reserve(static_cast<size_t>(model_.num_experts + 1));
  gathered_ = {buffers_[9].get(tokens == 1 ? 0 : rows * hidden_columns_), hidden_columns_};
  mixed_ = {buffers_[10].get(rows * mixed_columns_), mixed_columns_};
  routed_ = {buffers_[11].get(rows * hidden_columns_), hidden_columns_};
  for (Member &member : members_) {
    member.sums.get(model_.hidden);
  }
}

} // namespace corebound::decoder
