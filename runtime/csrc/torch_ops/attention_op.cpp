// Attention as a torch operator. Its index tensors address memory, so every one of them is checked.
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "torch_ops/tensor_args.h"

namespace corebound::torch_ops {
namespace {

using kernels::AttentionArgs;
using kernels::HeadGroup;

struct Free {
  void operator()(void *p) const { std::free(p); }
};

// A thread's working memory, kept for the next call because decode calls often.
void *scratch(int64_t bytes) {
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (bytes > size) {
    memory.reset(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
    if (!memory) {
      size = 0;
      throw std::bad_alloc();
    }
    size = bytes;
  }
  return memory.get();
}

// Runs of query heads that read the same kv head, each no longer than a kernel takes at once.
std::vector<HeadGroup> head_groups(const AttentionArgs &args, const int32_t *kv_heads) {
  if (!kv_heads && args.heads % args.kv_heads) {
    fail("attention: ", args.heads, " query heads do not divide into ", args.kv_heads, " groups; pass kv_heads");
  }
  std::vector<HeadGroup> groups;
  for (int32_t head = 0; head < args.heads; ++head) {
    const int32_t kv = kv_heads ? kv_heads[head] : static_cast<int32_t>(head / (args.heads / args.kv_heads));
    if (kv < 0 || kv >= args.kv_heads) {
      fail("attention: kv_heads[", head, "] is ", kv, ", expected 0 to ", args.kv_heads - 1);
    }
    if (!groups.empty() && groups.back().kv_head == kv && groups.back().count < kernels::max_group_heads) {
      ++groups.back().count;
    } else {
      groups.push_back({head, 1, kv});
    }
  }
  return groups;
}

// `tokens` queries in all; every block that a sequence's keys are in must exist.
void check_sequences(const AttentionArgs &args, int64_t tokens, int64_t num_blocks) {
  if (args.query_starts[0] != 0 || args.query_starts[args.sequences] != tokens) {
    fail("attention: query_starts run from ", args.query_starts[0], " to ", args.query_starts[args.sequences],
         ", expected 0 to ", tokens);
  }
  for (int64_t b = 0; b < args.sequences; ++b) {
    const int64_t queries = args.query_starts[b + 1] - args.query_starts[b], keys = args.context_lengths[b];
    if (queries < 0 || keys < queries || keys > args.max_blocks * args.block_size) {
      fail("attention: sequence ", b, " has ", queries, " queries and context length ", keys,
           ", expected a length from the queries' number to ", args.max_blocks * args.block_size);
    }
    for (int64_t i = 0; i * args.block_size < keys; ++i) {
      const int32_t block = args.block_tables[b * args.max_blocks + i];
      if (block < 0 || block >= num_blocks) {
        fail("attention: block_tables[", b, "][", i, "] is ", block, ", expected 0 to ", num_blocks - 1);
      }
    }
  }
}

template <class T> const T *pointer(const std::optional<Tensor> &t) {
  return t ? static_cast<const T *>(t->const_data_ptr()) : nullptr;
}

Tensor attention(const Tensor &q, const Tensor &key_cache, const Tensor &value_cache, const Tensor &block_tables,
                 const Tensor &query_starts, const Tensor &context_lengths, double scale,
                 const std::optional<Tensor> &alibi_slopes, const std::optional<Tensor> &kv_heads, int64_t window) {
  const Tensor queries = dense(q), tables = dense(block_tables), starts = dense(query_starts);
  const Tensor lengths = dense(context_lengths);
  const auto slopes = alibi_slopes ? std::optional(dense(*alibi_slopes)) : std::nullopt;
  const auto heads = kv_heads ? std::optional(dense(*kv_heads)) : std::nullopt;
  AttentionArgs args{};
  args.dtype = kernel_dtype("attention: q", queries);
  check_shape("attention: q", queries, {-1, -1, -1});
  check("attention: key_cache", key_cache, queries.scalar_type(), {-1, -1, -1, queries.size(2)});
  check("attention: value_cache", value_cache, queries.scalar_type(),
        {key_cache.size(0), key_cache.size(1), key_cache.size(2), key_cache.size(3)});
  check("attention: block_tables", tables, ScalarType::Int, {-1, -1});
  args.sequences = tables.size(0);
  check("attention: query_starts", starts, ScalarType::Int, {args.sequences + 1});
  check("attention: context_lengths", lengths, ScalarType::Int, {args.sequences});
  args.heads = queries.size(1);
  args.head_dim = queries.size(2);
  args.kv_heads = key_cache.size(1);
  args.block_size = key_cache.size(2);
  args.max_blocks = tables.size(1);
  if (slopes) {
    check("attention: alibi_slopes", *slopes, ScalarType::Float, {args.heads});
  }
  if (heads) {
    check("attention: kv_heads", *heads, ScalarType::Int, {args.heads});
  }
  if (args.head_dim < 1 || args.head_dim > kernels::max_head_dim) {
    fail("attention: head size ", args.head_dim, ", expected 1 to ", kernels::max_head_dim);
  }
  if (args.heads < 1 || args.kv_heads < 1 || args.block_size < 1) {
    fail("attention: expected at least one head, kv head and row per block, found ", shape_text(queries), " and ",
         shape_text(key_cache));
  }
  args.block_stride = block_stride("attention: cache", key_cache, value_cache);
  Tensor out = new_tensor(queries, {queries.size(0), args.heads, args.head_dim});
  args.q = queries.const_data_ptr();
  args.key_cache = key_cache.const_data_ptr();
  args.value_cache = value_cache.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.block_tables = static_cast<const int32_t *>(tables.const_data_ptr());
  args.query_starts = static_cast<const int32_t *>(starts.const_data_ptr());
  args.context_lengths = static_cast<const int32_t *>(lengths.const_data_ptr());
  args.alibi_slopes = pointer<float>(slopes);
  args.scale = static_cast<float>(scale);
  args.window = window;
  if (window < 0) {
    fail("attention: window ", window, ", expected 0 for all keys, or how many a query sees");
  }
  check_sequences(args, queries.size(0), key_cache.size(0));
  const std::vector<HeadGroup> groups = head_groups(args, pointer<int32_t>(heads));
  args.groups = groups.data();
  args.num_groups = static_cast<int64_t>(groups.size());

  args.max_parts = kernels::attention_max_parts(args);
  std::unique_ptr<float[]> partials;
  if (args.max_parts > 1) {
    const int64_t rows = args.sequences * args.max_parts * args.heads;
    partials.reset(new float[static_cast<size_t>(rows * kernels::attention_partial_floats(args.head_dim))]);
    args.partials = partials.get();
  }
  const auto kernel = kernels::active_kernels().attention;
  const auto merge = kernels::active_kernels().attention_merge;
  const int64_t bytes = kernels::attention_scratch_bytes(args);
  parallel(kernels::attention_items(args), 1,
           [&](int64_t begin, int64_t end) { kernel(args, scratch(bytes), begin, end); });
  if (args.partials) {
    parallel(args.sequences * args.heads, 1, [&](int64_t begin, int64_t end) { merge(args, begin, end); });
  }
  return out;
}

} // namespace

COREBOUND_SCHEMAS(m) {
  m.def("attention(Tensor q, Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor query_starts, "
        "Tensor context_lengths, float scale, Tensor? alibi_slopes, Tensor? kv_heads, int window=0) -> Tensor");
}

COREBOUND_KERNELS(CPU, m) { m.impl("attention", COREBOUND_KERNEL(attention)); }

} // namespace corebound::torch_ops
