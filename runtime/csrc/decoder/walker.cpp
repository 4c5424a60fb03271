#include "decoder/walker.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "comm/api.h"
#include "comm/clock.h"
#include "comm/reduce.h"

namespace corebound::decoder {
namespace {

using kernels::Activation;
using kernels::PanelInput;
using kernels::PanelOutput;

int64_t whole_panels(int64_t columns) {
  return (columns + kernels::panel_outputs - 1) / kernels::panel_outputs * kernels::panel_outputs;
}

float from_bf16(uint16_t bits) { return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16); }

uint16_t to_bf16(float x) {
  const auto u = __builtin_bit_cast(uint32_t, x);
  if ((u & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<uint16_t>((u >> 16) | 0x40U);
  }
  return static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
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
    max_inputs_ = std::max(max_inputs_, matrix.padded_inputs);
    max_blocks_ = std::max(max_blocks_, matrix.num_blocks());
    max_outputs_ = std::max(max_outputs_, matrix.num_panels() * kernels::panel_outputs);
  };
  for (int64_t i = 0; i < model.num_layers; ++i) {
    const Layer &layer = model.layers[i];
    inner_columns_ = std::max(inner_columns_, layer.mlp_in.num_panels() * (layer.mlp_in.gated ? 32 : 64));
    inner_columns_ = std::max(inner_columns_, layer.mlp_out.padded_inputs);
    // Layers may differ: a packed matrix is padded to its groups, a plain one is not.
    hidden_columns_ = std::max({hidden_columns_, layer.qkv.padded_inputs, layer.mlp_in.padded_inputs});
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

void Walker::choose_pace() {
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
  double best[2] = {1e300, 1e300};
  for (int round = 0; round < 2 * num_rounds; ++round) {
    paced_ = round % 2 == 1;
    const double start_s = comm::clock_s();
    team_.run([&](int index) {
      Member &member = members_[static_cast<size_t>(index)];
      int64_t bytes = 0;
      for (int64_t i = 0; i < model_.num_layers && bytes < enough_bytes; ++i) {
        for (const Matrix *matrix : {&model_.layers[i].mlp_in, &model_.layers[i].mlp_out}) {
          read_alone(member, *matrix);
          bytes += matrix->num_panels() * matrix->panel_bytes();
        }
      }
    });
    best[round % 2] = std::min(best[round % 2], comm::clock_s() - start_s);
  }
  paced_ = best[1] < 0.97 * best[0];
}

// A product of the member's part of a matrix with a row of zeros, into nowhere.
void Walker::read_alone(Member &member, const Matrix &matrix) {
  const int64_t panels = matrix.num_panels();
  PanelInput input{};
  input.x = member.nothing.get(matrix.padded_inputs);
  input.rows = 1;
  input.paced = paced_;
  if (matrix.kind != kernels::WeightKind::bfloat16) {
    round_alone(member, matrix, input);
  }
  const PanelOutput out = {member.trial.get(panels * kernels::panel_outputs), nullptr, nullptr, 0, Activation::none};
  float *scratch = member.panel.get(kernels::panel_scratch_floats(1));
  for (int64_t p = panels * member.index / team_.size(); p < panels * (member.index + 1) / team_.size(); ++p) {
    kernels_.panel_product(matrix, p, input, out, scratch);
  }
}

// Makes the member's own copy of the rows in whole numbers.
void Walker::round_alone(Member &member, const Matrix &matrix, PanelInput &input) const {
  const int64_t blocks = input.rows * matrix.num_blocks(), elements = input.rows * matrix.padded_inputs;
  int8_t *high = member.high.get(elements), *low = member.low.get(elements);
  float *scales = member.scales.get(2 * blocks);
  kernels_.round_rows(matrix, input, high, low, scales, scales + blocks);
  input.high = high;
  input.low = low;
  input.block_scales = scales;
  input.block_sums = scales + blocks;
}

int Walker::run(const Step &step) {
  step_ = &step;
  code_ = 0;
  make_room(step);
  shares_[0].deal(model_.layers[0].qkv.num_panels());
  team_.run([this](int index) {
    Member &member = members_[static_cast<size_t>(index)];
    member.turn = 0;
    walk(member);
  });
  return code_;
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
  tiles_ = wants_tiles(step.tokens) ? buffers_[7].get(kernels::tile_elements(rows, max_inputs_)) : nullptr;
  // Here, where running out of memory is an error and nobody waits at a barrier.
  kernels::AttentionArgs attention{};
  attention.head_dim = model_.head_dim;
  const int64_t few = std::min<int64_t>(step.tokens, 2); // rows that every member rounds for itself
  for (Member &member : members_) {
    member.panel.get(kernels::panel_scratch_floats(step.tokens));
    member.attention.get(kernels::attention_scratch_bytes(attention));
    member.high.get(few * max_inputs_);
    member.low.get(few * max_inputs_);
    member.scales.get(2 * few * max_blocks_);
  }
  const int64_t rounded = tiles_ ? kernels::min_tile_rows : rows; // more of them go by tiles
  high_ = rounded_[0].get(rounded * max_inputs_);
  low_ = rounded_[1].get(rounded * max_inputs_);
  block_scales_ = blocks_[0].get(rounded * max_blocks_);
  block_sums_ = blocks_[1].get(rounded * max_blocks_);
}

void Walker::walk(Member &member) {
  if (!embed(member)) {
    return;
  }
  const int64_t last = model_.num_layers - 1;
  int64_t rows = step_->tokens;
  for (int64_t i = 0; i <= last; ++i) {
    const Layer &layer = model_.layers[i];
    normalise(member, layer.attention_norm, i > 0, rows, &layer.qkv);
    multiply(member, layer.qkv, normed_, rows, {qkv_.data, nullptr, layer.qkv_bias, qkv_.stride, Activation::none},
             &layer.attention_out, true);
    wait(&layer.attention_out, member);
    attend(member, i);
    wait(&layer.attention_out, member);
    if (i == last) {
      // The other tokens have left their keys and values: nothing after this reads them.
      keep_wanted_rows(member);
      rows = step_->rows;
      if (rows == 0) {
        return;
      }
    }
    const bool alone = model_.comm_group == 0 && !model_.all_reduce;
    multiply(member, layer.attention_out, attended_, rows,
             {x_.data, nullptr, alone ? layer.attention_out_bias : nullptr, x_.stride, Activation::none}, &layer.mlp_in,
             false);
    wait(&layer.mlp_in, member);
    if (!alone && !sum_over_ranks(member, rows, layer.attention_out_bias)) {
      return;
    }
    normalise(member, layer.mlp_norm, true, rows, &layer.mlp_in);
    multiply(member, layer.mlp_in, normed_, rows,
             {inner_.data, nullptr, layer.mlp_in_bias, inner_.stride, static_cast<Activation>(model_.activation)},
             &layer.mlp_out, true);
    wait(&layer.mlp_out, member);
    const Matrix &next = i == last ? model_.head : model_.layers[i + 1].qkv;
    multiply(member, layer.mlp_out, inner_, rows,
             {x_.data, nullptr, alone ? layer.mlp_out_bias : nullptr, x_.stride, Activation::none}, &next, false);
    wait(&next, member);
    if (!alone && !sum_over_ranks(member, rows, layer.mlp_out_bias)) {
      return;
    }
  }
  normalise(member, model_.final_norm, true, rows, &model_.head);
  multiply(member, model_.head, normed_, rows, {nullptr, step_->logits, nullptr, model_.num_words, Activation::none},
           nullptr, true);
}

bool Walker::embed(Member &member) {
  const auto bytes = static_cast<size_t>(model_.hidden) * sizeof(uint16_t);
  const bool alone = model_.comm_group == 0 && !model_.all_reduce;
  const bool normed = model_.embedding_norm.weight != nullptr;
  const Rows &to = alone && !normed ? stream_ : x_;
  const Range tiles = tiles_of(member, step_->tokens);
  for (int64_t token = tiles.begin * 16; token < std::min(tiles.end * 16, step_->tokens); ++token) {
    const int64_t word = step_->token_ids[token] - model_.vocab_start;
    uint16_t *row = to.row(token);
    if (word < 0 || word >= model_.num_words) {
      std::memset(row, 0, bytes); // another rank's: the sum with its row is exact
    } else if (model_.embedding) {
      std::memcpy(row, model_.embedding + word * model_.hidden, bytes);
    } else {
      kernels::unpack_row(model_.head, word, row);
    }
  }
  const Matrix *next = &model_.layers[0].qkv;
  wait(next, member);
  if (!alone && !sum_over_ranks(member, step_->tokens, nullptr)) {
    return false;
  }
  if (normed) {
    normalise(member, model_.embedding_norm, false, step_->tokens, nullptr);
    const Range mine = tiles_of(member, step_->tokens);
    for (int64_t row = mine.begin * 16; row < std::min(mine.end * 16, step_->tokens); ++row) {
      std::memcpy(stream_.row(row), normed_.row(row), bytes);
    }
  } else if (!alone) {
    for (int64_t row = tiles.begin * 16; row < std::min(tiles.end * 16, step_->tokens); ++row) {
      std::memcpy(stream_.row(row), x_.row(row), bytes);
    }
  }
  return true;
}

void Walker::normalise(Member &member, const Norm &norm, bool with_residual, int64_t rows, const Matrix *next) {
  const Range tiles = tiles_of(member, rows);
  const Range mine = {tiles.begin * 16, std::min(tiles.end * 16, rows)};
  const auto kernel = model_.rms_norm ? kernels_.rms_norm : kernels_.layer_norm;
  kernels::NormArgs args{};
  args.weight = norm.weight;
  args.bias = norm.bias;
  args.width = model_.hidden;
  args.eps = model_.norm_eps;
  args.dtype = kernels::DType::bfloat16;
  // Without a residual the input is the stream itself (the first layer), or an embedding about to be normalised.
  const bool of_stream = !with_residual && next;
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    args.x = of_stream ? stream_.row(row) : x_.row(row);
    args.residual = with_residual ? stream_.row(row) : nullptr;
    args.sum = with_residual ? stream_.row(row) : nullptr;
    args.y = normed_.row(row);
    kernel(args, 0, 1);
    if (model_.norm_as_residual && next) {
      std::memcpy(stream_.row(row), normed_.row(row), static_cast<size_t>(model_.hidden) * sizeof(uint16_t));
    }
  }
  if (next) {
    prepare(*next, normed_, mine, rows);
    wait(next, member);
  }
}

void Walker::prepare(const Matrix &matrix, Rows in, Range rows, int64_t all) {
  if (rows.begin >= rows.end) {
    return;
  }
  PanelInput part{};
  part.x = in.row(rows.begin);
  part.rows = rows.end - rows.begin;
  part.stride = in.stride;
  const int64_t first = rows.begin * matrix.padded_inputs, block = rows.begin * matrix.num_blocks();
  if (wants_tiles(all)) {
    kernels_.make_tiles(part, matrix.padded_inputs, tiles_ + first, 0, (part.rows + 15) / 16);
  } else if (matrix.kind != kernels::WeightKind::bfloat16 && !rounds_alone(matrix, all)) {
    kernels_.round_rows(matrix, part, high_ + first, low_ + first, block_scales_ + block, block_sums_ + block);
  }
}

void Walker::multiply(Member &member, const Matrix &matrix, Rows in, int64_t rows, const PanelOutput &out,
                      const Matrix *next, bool prepared) {
  const bool tiled = wants_tiles(rows), quantised = matrix.kind != kernels::WeightKind::bfloat16;
  const bool alone = rounds_alone(matrix, rows);
  if (!prepared && (tiled || (quantised && !alone))) {
    const Range tiles = tiles_of(member, rows);
    prepare(matrix, in, {tiles.begin * 16, std::min(tiles.end * 16, rows)}, rows);
    wait(&matrix, member);
  }
  PanelInput input = {in.data, nullptr, high_, low_, block_scales_, block_sums_, rows, in.stride, paced_};
  if (tiled) {
    input.tiles = tiles_;
  } else if (alone) {
    round_alone(member, matrix, input);
  }
  Shares &mine = shares_[member.turn % 3];
  // Everyone has left the product before the last one, so nobody takes from these shares now.
  if (member.index == 0 && next) {
    shares_[(member.turn + 1) % 3].deal(next->num_panels());
  }
  ++member.turn;
  float *scratch = member.panel.get(kernels::panel_scratch_floats(rows));
  for (int64_t panel = mine.take(member.index); panel >= 0; panel = mine.take(member.index)) {
    kernels_.panel_product(matrix, panel, input, out, scratch);
  }
}

void Walker::attend(Member &member, int64_t layer) {
  const auto split = [&](int64_t count) {
    return Range{count * member.index / team_.size(), count * (member.index + 1) / team_.size()};
  };
  kernels::AttentionArgs args{};
  args.q = q_;
  args.key_cache = step_->key_caches[layer];
  args.value_cache = step_->value_caches[layer];
  // The kernel writes rows without padding; where the next matrix wants some, they are moved afterwards.
  const bool padded = attended_.stride != attended_columns_;
  args.out = padded ? qkv_.data : attended_.data;
  args.block_tables = step_->block_tables;
  args.query_starts = step_->query_starts;
  args.context_lengths = step_->context_lengths;
  args.alibi_slopes = model_.alibi_slopes;
  args.groups = model_.groups;
  args.num_groups = model_.num_groups;
  args.sequences = step_->sequences;
  args.max_blocks = step_->max_blocks;
  args.heads = model_.heads;
  args.kv_heads = model_.kv_heads;
  args.head_dim = model_.head_dim;
  args.block_size = step_->block_size;
  args.scale = model_.scale;
  args.dtype = kernels::DType::bfloat16;
  const kernels::QkvArgs qkv = {qkv_.data,
                                qkv_.stride,
                                step_->tokens,
                                q_,
                                static_cast<uint16_t *>(step_->key_caches[layer]),
                                static_cast<uint16_t *>(step_->value_caches[layer]),
                                step_->positions,
                                step_->slots,
                                step_->cos,
                                step_->sin,
                                model_.first_head,
                                model_.heads,
                                model_.kv_heads,
                                model_.head_dim,
                                step_->block_size,
                                model_.per_head_qkv};
  const Range kv = split(model_.kv_heads);
  kernels_.split_rotate_store(qkv, kv.begin, kv.end);
  if (member.index == 0) {
    items_.deal(kernels::attention_items(args));
  }
  team_.barrier();
  char *scratch = member.attention.get(kernels::attention_scratch_bytes(args));
  for (int64_t item = items_.take(member.index); item >= 0; item = items_.take(member.index)) {
    kernels_.attention(args, scratch, item, item + 1);
  }
  if (padded) {
    team_.barrier();
    const Range rows = split(step_->tokens);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      std::memcpy(attended_.row(row), qkv_.data + row * attended_columns_,
                  static_cast<size_t>(attended_columns_) * sizeof(uint16_t));
    }
  }
}

void Walker::keep_wanted_rows(Member &member) {
  if (member.index == 0) {
    for (int64_t i = 0; i < step_->rows; ++i) { // rising, and never before their place: nothing is overwritten early
      const int64_t from = step_->logits_rows[i];
      if (from != i) {
        std::memcpy(attended_.row(i), attended_.row(from), static_cast<size_t>(attended_columns_) * sizeof(uint16_t));
        std::memcpy(stream_.row(i), stream_.row(from), static_cast<size_t>(model_.hidden) * sizeof(uint16_t));
      }
    }
  }
  team_.barrier();
}

bool Walker::sum_over_ranks(Member &member, int64_t rows, const uint16_t *bias) {
  if (member.index == 0) {
    const int64_t count = rows * x_.stride;
    code_ = model_.comm_group ? corebound_comm_all_reduce(model_.comm_group, x_.data, count,
                                                          static_cast<int>(comm::DType::bfloat16), -1.0)
                              : model_.all_reduce(x_.data, count);
    for (int64_t row = 0; bias && row < rows; ++row) { // here, so that it counts once
      uint16_t *values = x_.row(row);
      for (int64_t i = 0; i < model_.hidden; ++i) {
        values[i] = to_bf16(from_bf16(values[i]) + from_bf16(bias[i]));
      }
    }
  }
  team_.barrier();
  return code_ == 0;
}

// A barrier, at which who waits fetches the beginning of what it will read next.
void Walker::wait(const Matrix *next, const Member &member) {
  if (!next) {
    return team_.barrier();
  }
  constexpr int64_t lines = 8, reach_bytes = 128 << 10;
  const int64_t first = next->num_panels() * member.index / team_.size();
  const char *at = next->panel(first), *end = at + std::min(reach_bytes, next->panel_bytes());
  team_.barrier([&] {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) {
      __builtin_prefetch(at, 0, 2);
    }
  });
}

Walker::Range Walker::tiles_of(const Member &member, int64_t rows) const {
  const int64_t tiles = (rows + 15) / 16;
  return {tiles * member.index / team_.size(), tiles * (member.index + 1) / team_.size()};
}

bool Walker::rounds_alone(const Matrix &matrix, int64_t rows) const {
  return matrix.kind != kernels::WeightKind::bfloat16 && rows <= 2 && !wants_tiles(rows);
}

bool Walker::wants_tiles(int64_t rows) const { return kernels_.takes_tiles() && rows >= kernels::min_tile_rows; }

} // namespace corebound::decoder
