// Walks a step of the model with a team of threads: Python calls once, everything between is here.
#pragma once

#include <vector>

#include "decoder/memory.h"
#include "decoder/model.h"
#include "decoder/rounded.h"
#include "decoder/team.h"

namespace corebound::decoder {

class Walker {
public:
  Walker(const Model &model, const std::vector<int> &cpus);

  // Computes the logits of a step, and stores its keys and values. Returns 0, or the code of a failed all-reduce.
  int run(const Step &step);
  // Computes so many steps, the first of them given: one token of every sequence, whose blocks have room for all steps.
  // Leaves the best word of every row and step, [num_steps, rows], as words of the whole vocabulary, and how many steps
  // were done: fewer after one with logits that are not numbers. Returns as run() does, or the code of a failed gather.
  int run_greedily(const Step &first, int64_t num_steps, float *values, int32_t *words, int64_t *num_done);
  // Reads some of the weights in each way (kernels/pace.h); the least seconds of each. Results do not depend on how
  // they are read.
  void time_readings(double *seconds);
  void read_as(kernels::Reading reading) { reading_ = reading; }

private:
  using Matrix = kernels::PanelMatrix;
  // One member's view of the step: where it is in the sequence of stages.
  struct Member {
    int index = 0;
    int turn = 0; // products begun
    Buffer<float> panel;
    Buffer<char> attention;
    RoundedBuffers rounded;          // its own copy of a few rows: cheaper than to wait for another's
    Buffer<uint16_t> trial, nothing; // for time_readings
    Buffer<float> sums;              // of the experts of a row
    Buffer<kernels::Best> best;      // of the member's panels of the head, by row
  };
  struct Rows {
    uint16_t *data;
    int64_t stride;
    uint16_t *row(int64_t index) const { return data + index * stride; }
  };
  struct Range {
    int64_t begin, end;
  };
  // An expert of a row: what it counts, and the row where its part lies.
  struct Choice {
    int32_t expert, place;
    float weight;
  };
  // The rows of one expert, from `first` on, and the tiles and panels of those before it.
  struct Run {
    const Expert *expert;
    int64_t first, rows, first_tile, inner, outer;
  };
  // What differs from step to step in run_greedily().
  struct Progress {
    std::vector<int64_t> token_ids, positions, slots;
    std::vector<int32_t> context_lengths;
  };
  struct Mixture {
    Buffer<float> scores;
    Buffer<Choice> choices;
    Buffer<int32_t> counts, sources;
    std::vector<Run> runs;
    int64_t tiles = 0, inner_panels = 0, outer_panels = 0;
  };

  bool advance(const Step &step);
  int choose_among_ranks(const Step &step);
  void make_room(const Step &step);
  void walk(Member &member);
  bool embed(Member &member); // false when the sum over the ranks failed
  // The norm of `x` (+ the residual stream, which it replaces) for `rows` rows, made ready for `next`.
  void normalise(Member &member, const Norm &norm, bool with_residual, int64_t rows, const Matrix *next);
  void attend(Member &member, int64_t layer);
  void finish_embedding(uint16_t *row, int64_t position) const; // multiplier and learned position
  void keep_wanted_rows(Member &member);
  void choose_words(int present) const; // of the members' best ones
  // One matrix for all rows of `in`; `next` is the matrix after it (of the next product), whose panels are dealt here.
  void multiply(Member &member, const Matrix &matrix, Rows in, int64_t rows, const kernels::PanelOutput &out,
                const Matrix *next, bool prepared);
  // Some of `all` rows as the matrix wants them: in tiles, or in whole numbers, at the place of a row.
  void prepare(const Matrix &matrix, Rows in, Range rows, int64_t all, int64_t place = 0);
  kernels::PanelInput input_of(const Matrix &matrix, Rows in, int64_t rows,
                               int64_t place) const; // what prepare made ready
  // Layers with experts (experts.cpp).
  void mix(Member &member, const Layer &layer, int64_t rows, const Matrix &next);
  void choose(int64_t row);
  void group(const Layer &layer, int64_t rows);
  void prepare_runs(Member &member, Matrix Expert::*which, Rows in, bool gather);
  void multiply_runs(Member &member, Matrix Expert::*which, Rows in, Rows out);
  void add_experts(Member &member, int64_t rows);
  void make_room_for_experts(int64_t tokens);
  int64_t choices_of_row() const { return model_.num_chosen + (model_.shared_expert ? 1 : 0); }
  int64_t mixed_rows(int64_t rows) const;
  bool sum_over_ranks(Member &member, int64_t rows);
  void add_branch(Member &member, int64_t rows); // x_ += branch_
  void round_alone(Member &member, const Matrix &matrix, kernels::PanelInput &input) const;
  void read_alone(Member &member, const Matrix &matrix);
  void wait(const Matrix *next, const Member &member);
  Range tiles_of(const Member &member, int64_t rows) const;
  bool alone() const { return model_.comm_group == 0 && !model_.all_reduce; } // no other rank to sum with
  bool wants_tiles(const Matrix &matrix, int64_t rows) const;
  bool wants_rounding(const Matrix &matrix, int64_t rows) const;
  bool rounds_alone(const Matrix &matrix, int64_t rows) const;

  Model model_;
  const kernels::KernelSet &kernels_;
  Team team_;
  std::vector<Member> members_;
  Shares shares_[3], items_;
  Buffer<float> partials_;
  int64_t parts_ = 1; // the most in which this step takes the keys of a sequence
  const Step *step_ = nullptr;
  Rows x_{}, stream_{}, normed_{}, qkv_{}, attended_{}, inner_{}, branch_{}, gathered_{}, mixed_{}, routed_{};
  Mixture mixture_;
  Progress progress_;
  Buffer<kernels::Best> offers_; // of this rank, then of all
  uint16_t *q_ = nullptr;
  uint16_t *tiles_ = nullptr;
  kernels::RoundedRows rounded_{};
  Buffer<uint16_t> buffers_[12];
  RoundedBuffers rounded_buffers_;
  int64_t attended_columns_, attended_inputs_, hidden_columns_, inner_columns_, max_inputs_, max_blocks_, max_outputs_;
  int64_t mixed_columns_ = 0;
  bool quantised_ = false; // some of the matrices
  kernels::Reading reading_ = kernels::Reading::at_once;
  int code_ = 0; // of the all-reduce that failed; written before a barrier, read after it
};

} // namespace corebound::decoder
