// Attention of a step: rotated queries, keys and values into the cache, and the cache read by all members.
#include "decoder/walker.h"

namespace corebound::decoder {

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
  args.block_stride = step_->block_stride;
  args.scale = model_.scale;
  args.window = model_.layers[layer].window;
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
                                step_->block_stride,
                                model_.per_head_qkv,
                                model_.rotary_half,
                                model_.rotary_interleaved,
                                model_.layers[layer].q_norm,
                                model_.layers[layer].k_norm,
                                model_.norm_eps};
  if (parts_ > 1) {
    args.partials = partials_.data();
    args.max_parts = parts_;
  }
  const Range kv = split(model_.kv_heads);
  kernels_.split_rotate_store(qkv, kv.begin, kv.end);
  if (member.index == 0) {
    items_.deal(kernels::attention_items(args), team_.size());
  }
  team_.barrier();
  char *scratch = member.attention.get(kernels::attention_scratch_bytes(args));
  for (int64_t item = items_.take(member.index); item >= 0; item = items_.take(member.index)) {
    kernels_.attention(args, scratch, item, item + 1);
  }
  if (parts_ > 1) {
    team_.barrier();
    const Range rows = split(step_->sequences * model_.heads);
    kernels_.attention_merge(args, rows.begin, rows.end);
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

} // namespace corebound::decoder
