// One rank's part of a model as the walker reads it, and one step. Plain C layouts: Python fills them in by ctypes
// (corebound/models/native_structs.py), field for field.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace corebound::decoder {

struct Norm {
  const uint16_t *weight; // bf16 [hidden]
  const uint16_t *bias;   // null for RMS norms
};

// One MLP of several in a layer.
struct Expert {
  kernels::PanelMatrix mlp_in, mlp_out;
};

struct Layer {
  Norm attention_norm, mlp_norm;
  kernels::PanelMatrix qkv, attention_out, mlp_in, mlp_out;
  // In panel order, whole panels, or null; what a sum over the ranks follows has them on one rank only.
  const uint16_t *qkv_bias, *attention_out_bias, *mlp_in_bias, *mlp_out_bias;
  const uint16_t *q_norm, *k_norm; // bf16 [head_dim] of an RMS norm of each head, or null
  int64_t window;                  // keys that a query sees; 0 for all
  const Expert *experts;           // in place of mlp_in and mlp_out, the shared one last; or null
  kernels::PanelMatrix router;     // the scores of the experts
};

// Sums `count` bf16 values over all ranks in place; returns 0, or a code that run() hands on.
using AllReduce = int (*)(void *data, int64_t count);

struct Model {
  int64_t num_layers, hidden, heads, kv_heads, head_dim, vocab_start;
  const Layer *layers;
  const uint16_t *embedding;       // bf16 rows of this rank's words, or null: `head` holds them
  int64_t num_words;               // of this rank
  Norm embedding_norm, final_norm; // no embedding norm where its weight is null
  kernels::PanelMatrix head;
  const kernels::HeadGroup *groups; // query heads by the kv head that they read
  int64_t num_groups;
  const int32_t *first_head; // [kv_heads + 1]
  const float *alibi_slopes; // [heads] or null
  float scale, norm_eps;
  int32_t activation; // kernels::Activation
  bool rms_norm, norm_as_residual, per_head_qkv;
  int64_t comm_group;                                           // handle of a shared-memory group, or 0
  AllReduce all_reduce;                                         // where there are ranks and no such group; else null
  const uint16_t *position_embedding;                           // bf16 rows from position 0 on, or null
  const uint16_t *head_bias;                                    // in panel order, or null
  int64_t rotary_half;                                          // the first 2 * rotary_half dimensions of a head turn
  float residual_multiplier, embedding_multiplier, norm_offset; // the last is added to the weights of all norms
  bool rotary_interleaved;
  bool parallel_residual;          // attention and MLP both read the stream, and one sum over the ranks serves both
  int64_t num_experts, num_chosen; // of a layer, and how many of them a token has
  bool shared_expert;              // one more, which all tokens have
  bool renormalised_experts;       // the weights of those that are chosen add up to one
};

// Shapes as in corebound.models.batch.StepBatch.
struct Step {
  int64_t tokens, sequences, max_blocks, rows;
  const int64_t *token_ids, *positions, *slots;
  const int32_t *block_tables, *query_starts, *context_lengths;
  const int64_t *logits_rows;
  void *const *key_caches, *const *value_caches; // by layer
  int64_t block_size, block_stride;              // rows; elements
  const float *cos, *sin;                        // rotary tables, or null
  float *logits;                                 // [rows, num_words]
  float *best_values;                            // [rows]: the largest of each, NaN where there is one; or null
  int32_t *best_words;                           // [rows]: the lowest of this rank's words that has it
};

} // namespace corebound::decoder
