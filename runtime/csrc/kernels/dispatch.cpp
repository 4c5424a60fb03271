// Chooses a variant's functions, and reports what every variant has. Compiled for the baseline.
#include <algorithm>
#include <string>

#include "isa/isa.h"
#include "kernels/kernels.h"

namespace corebound::kernels {

namespace generic {
extern const KernelSet kernel_set;
}
namespace avx2 {
extern const KernelSet kernel_set;
}
namespace avx512 {
extern const KernelSet kernel_set;
}
namespace avx512_vnni {
extern const KernelSet kernel_set;
}
namespace avx512_bf16 {
extern const KernelSet kernel_set;
}
namespace amx {
extern const KernelSet kernel_set;
}

namespace {

const KernelSet &kernels_of(isa::Variant variant) {
  switch (variant) {
  case isa::Variant::amx:
    return amx::kernel_set;
  case isa::Variant::avx512_bf16:
    return avx512_bf16::kernel_set;
  case isa::Variant::avx512_vnni:
    return avx512_vnni::kernel_set;
  case isa::Variant::avx512:
    return avx512::kernel_set;
  case isa::Variant::avx2:
    return avx2::kernel_set;
  case isa::Variant::generic:
    break;
  }
  return generic::kernel_set;
}

constexpr const char *op_names[] = {"layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm", "split_qkv", "rotary",
                                    "store_kv",   "attention",      "gelu",     "silu_mul",     "linear"};

std::string table_json() {
  const std::string dtypes = "[\"float32\", \"bfloat16\", \"float16\"]";
  std::string variants;
  for (const KernelSet *set : {&amx::kernel_set, &avx512_bf16::kernel_set, &avx512_vnni::kernel_set,
                               &avx512::kernel_set, &avx2::kernel_set, &generic::kernel_set}) {
    variants += (variants.empty() ? "{\"name\": \"" : ", {\"name\": \"") + std::string(set->name) +
                "\", \"dtypes\": " + dtypes + "}";
  }
  std::string out = "[";
  for (const char *op : op_names) {
    out += (out.size() > 1 ? ", {\"op\": \"" : "{\"op\": \"") + std::string(op) + "\", \"variants\": [" + variants +
           "], \"active\": \"" + active_kernels().name + "\"}";
  }
  return out + "]";
}

} // namespace

const KernelSet &active_kernels() { return kernels_of(isa::active()); }

int64_t attention_parts(const AttentionArgs &args, int64_t b) {
  if (args.query_starts[b + 1] - args.query_starts[b] != 1) {
    return 1;
  }
  const int64_t all = args.context_lengths[b], seen = args.window > 0 ? std::min(all, args.window) : all;
  return std::max<int64_t>(1, (seen + attention_part_keys - 1) / attention_part_keys);
}

int64_t attention_max_parts(const AttentionArgs &args) {
  int64_t most = 1;
  for (int64_t b = 0; b < args.sequences; ++b) {
    most = std::max(most, attention_parts(args, b));
  }
  return most;
}

int64_t attention_rows(const AttentionArgs &args) {
  if (args.dtype != DType::bfloat16) {
    return attention_query_tile;
  }
  constexpr int64_t enough_items = 32; // for the threads of a large machine to share
  int64_t all = 0;
  for (int64_t b = 0; b < args.sequences; ++b) {
    const int64_t queries = args.query_starts[b + 1] - args.query_starts[b];
    all += queries > 1 ? queries * args.heads : 0;
  }
  int64_t rows = attention_max_rows(args.head_dim);
  while (rows > attention_query_tile && all < enough_items * rows) {
    rows /= 2;
  }
  return rows;
}

int64_t attention_items(const AttentionArgs &args) {
  const int64_t rows = attention_rows(args);
  int64_t items = 0;
  for (int64_t b = 0; b < args.sequences; ++b) {
    const int64_t queries = args.query_starts[b + 1] - args.query_starts[b];
    if (queries == 1) {
      items += args.num_groups * (args.partials ? attention_parts(args, b) : 1);
      continue;
    }
    for (int64_t g = 0; g < args.num_groups; ++g) {
      const int64_t tile = rows / args.groups[g].count;
      items += (queries + tile - 1) / tile;
    }
  }
  return items;
}

int64_t attention_scratch_bytes(const AttentionArgs &args) {
  // Rows are padded to 16 floats so that every one of them can be loaded as whole vectors.
  const int64_t dim = (args.head_dim + 15) / 16 * 16;
  const int64_t rows = attention_query_tile, keys = attention_key_tile;
  // Queries, results, scores, keys transposed, values; then maximum and sum of each row.
  const int64_t floats = 2 * rows * dim + rows * keys + 2 * keys * dim + 2 * rows;
  // Several bf16 queries, see Bf16Work: keys and values; queries and weights; scores, results, 17 of a row.
  const int64_t padded = (args.head_dim + 31) / 32 * 32, chunked = (args.head_dim + 63) / 64 * 64;
  const int64_t block = attention_block_keys, of_block = attention_row_block * block;
  const int64_t max_rows = attention_max_rows(args.head_dim);
  const int64_t several =
      2 * (block * (padded + chunked) + max_rows * padded + of_block) + 4 * (of_block + max_rows * (chunked + 17));
  return std::max(static_cast<int64_t>(sizeof(float)) * floats, several);
}

} // namespace corebound::kernels

// JSON text, valid until the next call on the same thread: for every op its variants, best first, their dtypes, and
// the active one.
COREBOUND_API const char *corebound_kernel_table(void) {
  thread_local std::string text;
  text = corebound::kernels::table_json();
  return text.c_str();
}
