// Causal attention over the blocked cache with an online softmax: scores exist for 64 keys at a time only.
#include <type_traits>

#include "kernels/attention_decode.h"
#include "kernels/attention_prefill.h"
#include "kernels/attention_prefill_bf16.h"
#include "kernels/ops_internal.h"

COREBOUND_BEGIN_VARIANT

template <class T> void attention_range(const AttentionArgs &args, void *scratch, int64_t begin, int64_t end) {
  Work work(args, scratch);
  int64_t index = 0;
  for (int64_t b = 0; b < args.sequences; ++b) {
    const int64_t start = args.query_starts[b], queries = args.query_starts[b + 1] - start;
    for (int64_t g = 0; g < args.num_groups; ++g) {
      const int64_t tile = queries_per_item(args.groups[g].count);
      for (int64_t first = 0; first < queries; first += tile, ++index) {
        if (index < begin || index >= end) {
          continue;
        }
        const Item item = {args.groups[g], args.block_tables + b * args.max_blocks, start + first,
                           queries - first < tile ? queries - first : tile, args.context_lengths[b] - queries + first};
        if (item.num_queries == 1) {
          attend_one_query<T>(args, item, work);
        } else if constexpr (std::is_same_v<T, bf16>) {
          attend_bf16_queries(args, item, scratch);
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

} // namespace corebound::kernels::COREBOUND_VARIANT
