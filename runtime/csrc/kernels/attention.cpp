// Causal attention over the blocked cache with an online softmax: scores exist for 64 keys at a time only.
#include <type_traits>

#include "kernels/attention_decode.h"
#include "kernels/attention_decode_amx.h"
#include "kernels/attention_prefill.h"
#include "kernels/attention_prefill_bf16.h"
#include "kernels/ops_internal.h"

COREBOUND_BEGIN_VARIANT

#ifdef __AMX_BF16__
// From so many heads that read the same keys on, laying these out for tiles costs less than vectors do.
constexpr int64_t min_laid_out_heads = 4;
#endif

template <class T>
void attend_single(const AttentionArgs &args, const Item &item, const KeyRange &range, Work &work,
                   [[maybe_unused]] void *scratch) {
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, bf16>) {
    if (shares_tiles(args)) {
      return item.group.count > 4 ? attend_shared<8>(args, item, range, scratch)
                                  : attend_shared<4>(args, item, range, scratch);
    }
    if (item.group.count >= min_laid_out_heads) {
      return attend_bf16_queries(args, item, range, scratch);
    }
  }
#endif
  attend_one_query<T>(args, item, range, work);
}

// The only query of sequence `b`: some of its groups of heads, each in parts.
template <class T>
void attend_sequence(const AttentionArgs &args, int64_t b, int64_t parts, int64_t begin, int64_t end, Work &work,
                     void *scratch) {
  const int64_t position = args.context_lengths[b] - 1, seen = first_seen(args, position);
  const int64_t row = args.heads * attention_partial_floats(args.head_dim);
  for (int64_t index = begin; index < end; ++index) {
    const Item item = {args.groups[index / parts], args.block_tables + b * args.max_blocks, args.query_starts[b], 1,
                       position};
    const int64_t part = index % parts, from = seen + part * attention_part_keys, to = from + attention_part_keys;
    const KeyRange range = {from, parts == 1 || to > position ? position + 1 : to,
                            parts == 1 ? nullptr : args.partials + (b * args.max_parts + part) * row};
    attend_single<T>(args, item, range, work, scratch);
  }
}

template <class T> void attention_range(const AttentionArgs &args, void *scratch, int64_t begin, int64_t end) {
  Work work(args, scratch);
  const int64_t rows = attention_rows(args);
  int64_t index = 0;
  for (int64_t b = 0; b < args.sequences && index < end; ++b) {
    const int64_t start = args.query_starts[b], queries = args.query_starts[b + 1] - start;
    if (queries == 1) {
      const int64_t parts = args.partials ? attention_parts(args, b) : 1, items = args.num_groups * parts;
      const int64_t first = begin > index ? begin - index : 0, last = end - index < items ? end - index : items;
      attend_sequence<T>(args, b, parts, first, last, work, scratch);
      index += items;
      continue;
    }
    const int32_t *blocks = args.block_tables + b * args.max_blocks;
    for (int64_t g = 0; g < args.num_groups; ++g) {
      // From the last queries, which see the most keys, to the first, so that threads finish together.
      const int64_t tile = rows / args.groups[g].count;
      for (int64_t first = (queries + tile - 1) / tile * tile - tile; first >= 0; first -= tile, ++index) {
        if (index < begin || index >= end) {
          continue;
        }
        const Item item = {args.groups[g], blocks, start + first, queries - first < tile ? queries - first : tile,
                           args.context_lengths[b] - queries + first};
        if (item.num_queries == 1) {
          const KeyRange all = {first_seen(args, item.first_position), item.first_position + 1, nullptr};
          attend_single<T>(args, item, all, work, scratch);
        } else if constexpr (std::is_same_v<T, bf16>) {
          const KeyRange all = {first_seen(args, item.first_position) / block_keys * block_keys,
                                item.first_position + item.num_queries, nullptr};
          attend_bf16_queries(args, item, all, scratch);
        } else {
          attend_queries<T>(args, item, work);
        }
      }
    }
  }
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void attention(const AttentionArgs &args, void *scratch, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { attention_range<T>(args, scratch, begin, end); });
}

void attention_merge(const AttentionArgs &args, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const int64_t b = index / args.heads, head = index % args.heads;
    if (attention_parts(args, b) > 1) {
      with_dtype(args.dtype, [&]<class T>(T *) { merge_parts<T>(args, b, head); });
    }
  }
}

} // namespace corebound::kernels::COREBOUND_VARIANT
