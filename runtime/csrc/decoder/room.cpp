// What happens before a step: the sizes of everything, memory for it, and the trial of how to read the weights.
#include "decoder/walker.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "comm/clock.h"

namespace corebound::decoder {
namespace {

using kernels::Activation;
using kernels::PanelInput;
using kernels::PanelOutput;

int64_t whole_panels(int64_t columns) {
  return (columns + kernels::panel_outputs - 1) / kernels::panel_outputs * kernels::panel_outputs;
}

} // namespace

Walker::Walker(const Model &model, const std::vector<int> &cpus)
    : model_(model), kernels_(kernels::active_kernels()), team_(cpus), members_(cpus.size()),
      shares_{Shares(static_cast<int>(cpus.size())), Shares(static_cast<int>(cpus.size())),
              Shares(static_cast<int>(cpus.size()))},
      items_(static_cast<int>(cpus.size())), attended_columns_(model.heads * model.head_dim),
      attended_inputs_(attended_columns_), hidden_columns_(whole_panels(model.hidden)), inner_columns_(0),
      max_inputs_(0), max_blocks_(0), max_outputs_(0) {
  for (size_t m = 0; m < members_.size(); ++m) {
    members_[m].index = static_cast<int>(m);
  }
  const auto look = [&](const Matrix &matrix) {
    if (matrix.outputs == 0) { // of a layer that has others
      return;
    }
    max_inputs_ = std::max(max_inputs_, matrix.padded_inputs);
    max_blocks_ = std::max(max_blocks_, matrix.num_blocks());
    max_outputs_ = std::max(max_outputs_, matrix.num_panels() * kernels::panel_outputs);
    quantised_ = quantised_ || matrix.kind != kernels::WeightKind::bfloat16;
  };
  const auto inner_columns = [](const Matrix &in, const Matrix &out) {
    return std::max(in.num_panels() * (in.gated ? 32 : 64), out.padded_inputs);
  };
  for (int64_t i = 0; i < model.num_layers; ++i) {
    const Layer &layer = model.layers[i];
    // Layers may differ: a packed matrix is padded to its groups, a plain one is not.
    hidden_columns_ = std::max({hidden_columns_, layer.qkv.padded_inputs, layer.mlp_in.padded_inputs});
    inner_columns_ = std::max(inner_columns_, inner_columns(layer.mlp_in, layer.mlp_out));
    for (int64_t e = 0; layer.experts && e < model.num_experts + (model.shared_expert ? 1 : 0); ++e) {
      const Expert &expert = layer.experts[e];
      mixed_columns_ = std::max(mixed_columns_, inner_columns(expert.mlp_in, expert.mlp_out));
      hidden_columns_ = std::max({hidden_columns_, expert.mlp_in.padded_inputs, layer.router.padded_inputs});
      look(expert.mlp_in);
      look(expert.mlp_out);
    }
    look(layer.router);
    attended_inputs_ = std::max(attended_inputs_, layer.attention_out.padded_inputs);
    look(layer.qkv);
    look(layer.attention_out);
    look(layer.mlp_in);
    look(layer.mlp_out);
  }
  look(model.head);
  hidden_columns_ = std::max(hidden_columns_, model.head.padded_inputs);
  if (model.head_dim < 1 || model.head_dim > kernels::max_head_dim) {
    throw std::invalid_argument("expected heads of 1 to " + std::to_string(kernels::max_head_dim) +
                                " dimensions, found " + std::to_string(model.head_dim));
  }
}

void Walker::make_room(const Step &step) {
  const int64_t rows = (step.tokens + 15) / 16 * 16;
  const int64_t hidden = hidden_columns_, attended = attended_inputs_;
  const int64_t qkv = whole_panels((model_.heads + 2 * model_.kv_heads) * model_.head_dim);
  x_ = {buffers_[0].get(rows * hidden), hidden};
  stream_ = {buffers_[1].get(rows * hidden), hidden};
  normed_ = {buffers_[2].get(rows * hidden), hidden};
  qkv_ = {buffers_[3].get(rows * qkv), qkv};
  q_ = buffers_[4].get(rows * attended_columns_);
  attended_ = {buffers_[5].get(rows * attended), attended};
  inner_ = {buffers_[6].get(rows * inner_columns_), inner_columns_};
  branch_ = {model_.parallel_residual ? buffers_[8].get(rows * hidden) : nullptr, hidden};
  int64_t prepared = rows; // for a matrix
  if (model_.num_experts > 0) {
    make_room_for_experts(step.tokens);
    prepared = std::max(rows, mixed_rows(step.tokens));
  }
  // One tile more: the last of an expert may be taken with the one after it.
  const bool tiled = kernels_.takes_tiles() && step.tokens >= kernels::min_tile_rows;
  tiles_ = tiled ? buffers_[7].get(kernels::tile_elements(prepared + 16, max_inputs_)) : nullptr;
  // Here, where running out of memory is an error and nobody waits at a barrier.
  kernels::AttentionArgs attention{};
  attention.head_dim = model_.head_dim;
  attention.sequences = step.sequences;
  attention.query_starts = step.query_starts;
  attention.context_lengths = step.context_lengths;
  parts_ = kernels::attention_max_parts(attention); // of layers without a window
  if (parts_ > 1) {
    partials_.get(step.sequences * parts_ * model_.heads * kernels::attention_partial_floats(model_.head_dim));
  }
  const int64_t few = std::min<int64_t>(step.tokens, 2); // rows that every member rounds for itself
  for (Member &member : members_) {
    member.panel.get(kernels::panel_scratch_floats(step.tokens));
    member.best.get(step.rows);
    member.attention.get(kernels::attention_scratch_bytes(attention));
    member.rounded.get(few * max_inputs_, few * max_blocks_);
  }
  int64_t rounded = quantised_ ? std::min(rows, kernels_.max_code_rows()) : 0;
  if (model_.num_experts > 0 && quantised_) {
    rounded = prepared; // few of each expert's, but at their places
  }
  rounded_ = rounded_buffers_.get(rounded * max_inputs_, rounded * max_blocks_);
}

void Walker::time_readings(double *seconds) {
  // The first layers, as far as no cache holds them, by every member as in a step; alternating, because machines are
  // noisy.
  constexpr int64_t enough_bytes = 512 << 20;
  constexpr int num_rounds = 3;
  Step step{};
  step.tokens = 1;
  make_room(step);
  for (Member &member : members_) {
    member.nothing.get(max_inputs_);
    member.trial.get(max_outputs_);
  }
  std::fill(seconds, seconds + kernels::num_readings, 1e300);
  for (int round = 0; round < kernels::num_readings * num_rounds; ++round) {
    reading_ = static_cast<kernels::Reading>(round % kernels::num_readings);
    const double start_s = comm::clock_s();
    team_.run(
        [&](int index) {
          Member &member = members_[static_cast<size_t>(index)];
          int64_t bytes = 0;
          for (int64_t i = 0; i < model_.num_layers && bytes < enough_bytes; ++i) {
            const Layer &layer = model_.layers[i];
            const bool mixed = layer.experts != nullptr;
            for (const Matrix *matrix : {mixed ? &layer.experts[0].mlp_in : &layer.mlp_in,
                                         mixed ? &layer.experts[0].mlp_out : &layer.mlp_out}) {
              read_alone(member, *matrix);
              bytes += matrix->num_panels() * matrix->panel_bytes();
            }
          }
        },
        true);
    double &of_reading = seconds[static_cast<int>(reading_)];
    of_reading = std::min(of_reading, comm::clock_s() - start_s);
  }
}

// A product of the member's part of a matrix with a row of zeros, into nowhere.
void Walker::read_alone(Member &member, const Matrix &matrix) {
  const int64_t panels = matrix.num_panels();
  PanelInput input{};
  input.x = member.nothing.get(matrix.padded_inputs);
  input.rows = 1;
  input.reading = reading_;
  if (matrix.kind != kernels::WeightKind::bfloat16) {
    round_alone(member, matrix, input);
  }
  const PanelOutput out = {member.trial.get(panels * kernels::panel_outputs), nullptr, nullptr, 0, Activation::none};
  float *scratch = member.panel.get(kernels::panel_scratch_floats(1));
  for (int64_t p = panels * member.index / team_.size(); p < panels * (member.index + 1) / team_.size(); ++p) {
    kernels_.panel_product(matrix, p, input, out, scratch);
  }
}

} // namespace corebound::decoder
