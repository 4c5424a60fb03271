// Several steps in one call, each of one token of every sequence: the best word of a step is the token of the next.
#include <cmath>
#include <stdexcept>

#include "comm/api.h"
#include "decoder/walker.h"

namespace corebound::decoder {
using kernels::Best;

int Walker::run_greedily(const Step &first, int64_t num_steps, float *values, int32_t *words, int64_t *num_done) {
  if (model_.all_reduce || first.tokens != first.rows || first.sequences != first.rows) {
    throw std::logic_error("several steps want one token of every sequence, and ranks that share memory");
  }
  *num_done = 0;
  Progress &now = progress_;
  now.token_ids.assign(first.token_ids, first.token_ids + first.rows);
  now.positions.assign(first.positions, first.positions + first.rows);
  now.slots.assign(first.slots, first.slots + first.rows);
  now.context_lengths.assign(first.context_lengths, first.context_lengths + first.rows);
  Step step = first;
  step.token_ids = now.token_ids.data();
  step.positions = now.positions.data();
  step.slots = now.slots.data();
  step.context_lengths = now.context_lengths.data();
  for (int64_t done = 0; done < num_steps; ++done) {
    if (done > 0 && !advance(step)) {
      break;
    }
    step.best_values = values + done * first.rows;
    step.best_words = words + done * first.rows;
    int code = run(step);
    if (code == 0) {
      code = choose_among_ranks(step);
    }
    if (code != 0) {
      return code;
    }
    *num_done = done + 1;
  }
  return 0;
}

// Makes the best words the tokens of the next step; false where logits were not numbers, so that there is no such word.
bool Walker::advance(const Step &step) {
  for (int64_t row = 0; row < step.rows; ++row) {
    if (std::isnan(step.best_values[row])) {
      return false;
    }
    const auto at = static_cast<size_t>(row);
    const int64_t position = ++progress_.positions[at];
    const int32_t block = step.block_tables[row * step.max_blocks + position / step.block_size];
    progress_.token_ids[at] = step.best_words[row];
    progress_.slots[at] = block * step.block_size + position % step.block_size;
    ++progress_.context_lengths[at];
  }
  return true;
}

// Replaces the best words of this rank, counted from its first, by those of the whole vocabulary, equal on all ranks.
int Walker::choose_among_ranks(const Step &step) {
  const auto rows = static_cast<size_t>(step.rows);
  for (size_t row = 0; row < rows; ++row) {
    step.best_words[row] += static_cast<int32_t>(model_.vocab_start);
  }
  if (alone()) {
    return 0;
  }
  const auto num_ranks = static_cast<size_t>(corebound_comm_size(model_.comm_group));
  Best *offers = offers_.get(static_cast<int64_t>(rows * (num_ranks + 1)));
  const Best *all = offers + rows;
  for (size_t row = 0; row < rows; ++row) {
    offers[row] = {step.best_values[row], step.best_words[row]};
  }
  const int code = corebound_comm_all_gather(model_.comm_group, offers, offers + rows,
                                             static_cast<int64_t>(rows * sizeof(Best)), -1.0);
  for (size_t row = 0; code == 0 && row < rows; ++row) {
    Best best = all[row];
    for (size_t rank = 1; rank < num_ranks; ++rank) {
      const Best &its = all[rank * rows + row];
      if (best.yields_to(its.value, its.word)) {
        best = its;
      }
    }
    step.best_values[row] = best.value;
    step.best_words[row] = best.word;
  }
  return code;
}

} // namespace corebound::decoder
