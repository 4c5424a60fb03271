// The functions of one variant, defined in its files and collected in variant.cpp.
#pragma once

#include "kernels/kernels.h"
#include "kernels/variant.h"

namespace corebound::kernels::COREBOUND_VARIANT {

void layer_norm(const NormArgs &args, int64_t begin, int64_t end);
void rms_norm(const NormArgs &args, int64_t begin, int64_t end);
void split_qkv(const SplitQkvArgs &args, int64_t begin, int64_t end);
void rotary(const RotaryArgs &args, int64_t begin, int64_t end);
void store_kv(const StoreKvArgs &args, int64_t begin, int64_t end);
void attention(const AttentionArgs &args, void *scratch, int64_t begin, int64_t end);
void attention_merge(const AttentionArgs &args, int64_t begin, int64_t end);
void gelu(const UnaryArgs &args, int64_t begin, int64_t end);
void silu_mul(const SiluMulArgs &args, int64_t begin, int64_t end);
void linear(const LinearArgs &args, int64_t begin, int64_t end);
void panel_product(const PanelMatrix &matrix, int64_t panel, const PanelInput &in, const PanelOutput &out,
                   float *scratch);
void panel_products(const PanelMatrix &matrix, int64_t panel, int64_t count, const PanelInput &in,
                    const PanelOutput &out, float *scratch);
void make_tiles(const PanelInput &in, int64_t padded_inputs, uint16_t *tiles, int64_t begin, int64_t end);
void round_rows(const PanelMatrix &matrix, const PanelInput &in, const RoundedRows &to);
void split_rotate_store(const QkvArgs &args, int64_t begin, int64_t end);
bool takes_tiles();
int64_t max_code_rows();
bool fill_panel_rows(const PanelMatrix &matrix, const ValueArgs &args, int64_t first_row, float largest,
                     uint16_t *rounded);

} // namespace corebound::kernels::COREBOUND_VARIANT
