// The order of a step, and what lies between its products.
#include "decoder/walker.h"

#include <algorithm>

#include "comm/api.h"
#include "comm/reduce.h"
#include "decoder/bf16.h"

namespace corebound::decoder {
using kernels::Activation;

int Walker::run(const Step &step) {
  step_ = &step;
  code_ = 0;
  make_room(step);
  team_.gather();
  const int present = team_.size();
  shares_[0].deal(model_.layers[0].qkv.num_panels(), present);
  team_.run([this](int index) {
    Member &member = members_[static_cast<size_t>(index)];
    member.turn = 0;
    walk(member);
  });
  if (step.best_values && code_ == 0) {
    choose_words(present);
  }
  return code_;
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
    const bool parallel = model_.parallel_residual;
    const Rows &attended = parallel ? branch_ : x_;
    const Matrix &mlp = layer.experts ? layer.router : layer.mlp_in;
    multiply(member, layer.attention_out, attended_, rows,
             {attended.data, nullptr, layer.attention_out_bias, attended.stride, Activation::none}, &mlp, false);
    wait(&mlp, member);
    if (!parallel && !alone() && !sum_over_ranks(member, rows)) {
      return;
    }
    normalise(member, layer.mlp_norm, !parallel, rows, &mlp);
    const Matrix &next = i == last ? model_.head : model_.layers[i + 1].qkv;
    if (layer.experts) {
      mix(member, layer, rows, next);
    } else {
      multiply(member, layer.mlp_in, normed_, rows,
               {inner_.data, nullptr, layer.mlp_in_bias, inner_.stride, static_cast<Activation>(model_.activation)},
               &layer.mlp_out, true);
      wait(&layer.mlp_out, member);
      multiply(member, layer.mlp_out, inner_, rows, {x_.data, nullptr, layer.mlp_out_bias, x_.stride, Activation::none},
               &next, false);
      wait(&next, member);
    }
    if (parallel) {
      add_branch(member, rows);
    }
    if (!alone() && !sum_over_ranks(member, rows)) {
      return;
    }
  }
  normalise(member, model_.final_norm, true, rows, &model_.head);
  kernels::Best *best = step_->best_values ? member.best.data() : nullptr;
  if (best) {
    std::fill_n(best, rows, kernels::no_word);
  }
  multiply(member, model_.head, normed_, rows,
           {nullptr, step_->logits, model_.head_bias, model_.num_words, Activation::none, best}, nullptr, true);
}

// From what so many members have found.
void Walker::choose_words(int present) const {
  for (int64_t row = 0; row < step_->rows; ++row) {
    kernels::Best best = kernels::no_word;
    for (size_t member = 0; member < static_cast<size_t>(present); ++member) {
      const kernels::Best &its = members_[member].best.data()[row];
      if (best.yields_to(its.value, its.word)) {
        best = its;
      }
    }
    step_->best_values[row] = best.value;
    step_->best_words[row] = best.word;
  }
}

bool Walker::embed(Member &member) {
  const auto bytes = static_cast<size_t>(model_.hidden) * sizeof(uint16_t);
  const bool normed = model_.embedding_norm.weight != nullptr;
  const Rows &to = alone() && !normed ? stream_ : x_;
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
    if (word >= 0 && word < model_.num_words) {
      finish_embedding(row, step_->positions[token]);
    }
  }
  const Matrix *next = &model_.layers[0].qkv;
  wait(next, member);
  if (!alone() && !sum_over_ranks(member, step_->tokens)) {
    return false;
  }
  if (normed) {
    normalise(member, model_.embedding_norm, false, step_->tokens, nullptr);
    const Range mine = tiles_of(member, step_->tokens);
    for (int64_t row = mine.begin * 16; row < std::min(mine.end * 16, step_->tokens); ++row) {
      std::memcpy(stream_.row(row), normed_.row(row), bytes);
    }
  } else if (!alone()) {
    for (int64_t row = tiles.begin * 16; row < std::min(tiles.end * 16, step_->tokens); ++row) {
      std::memcpy(stream_.row(row), x_.row(row), bytes);
    }
  }
  return true;
}

// Where the word is, so that the sum over the ranks stays exact.
void Walker::finish_embedding(uint16_t *row, int64_t position) const {
  const uint16_t *place = model_.position_embedding;
  if (model_.embedding_multiplier == 1.0F && !place) {
    return;
  }
  for (int64_t i = 0; i < model_.hidden; ++i) {
    row[i] = to_bf16(from_bf16(row[i]) * model_.embedding_multiplier +
                     (place ? from_bf16(place[position * model_.hidden + i]) : 0.0F));
  }
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
  args.x_scale = model_.residual_multiplier;
  args.weight_offset = model_.norm_offset;
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

void Walker::add_branch(Member &member, int64_t rows) {
  const Range tiles = tiles_of(member, rows);
  for (int64_t row = tiles.begin * 16; row < std::min(tiles.end * 16, rows); ++row) {
    uint16_t *x = x_.row(row);
    const uint16_t *branch = branch_.row(row);
    for (int64_t i = 0; i < model_.hidden; ++i) {
      x[i] = to_bf16(from_bf16(x[i]) + from_bf16(branch[i]));
    }
  }
  if (!alone()) { // who normalises these rows next is who added them
    team_.barrier();
  }
}

bool Walker::sum_over_ranks(Member &member, int64_t rows) {
  if (member.index == 0) {
    const int64_t count = rows * x_.stride;
    code_ = model_.comm_group ? corebound_comm_all_reduce(model_.comm_group, x_.data, count,
                                                          static_cast<int>(comm::DType::bfloat16), -1.0)
                              : model_.all_reduce(x_.data, count);
  }
  team_.barrier();
  return code_ == 0;
}

} // namespace corebound::decoder
