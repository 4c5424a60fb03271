// The table of this variant's functions.
#include "kernels/ops_internal.h"

#define COREBOUND_TEXT2(name) #name
#define COREBOUND_TEXT(name) COREBOUND_TEXT2(name)

namespace corebound::kernels::COREBOUND_VARIANT {

extern const KernelSet kernel_set; // const alone would make it internal to this file
constinit const KernelSet kernel_set = {COREBOUND_TEXT(COREBOUND_VARIANT),
                                        layer_norm,
                                        rms_norm,
                                        split_qkv,
                                        rotary,
                                        store_kv,
                                        attention,
                                        attention_merge,
                                        gelu,
                                        silu_mul,
                                        linear,
                                        panel_product,
                                        panel_products,
                                        make_tiles,
                                        round_rows,
                                        split_rotate_store,
                                        takes_tiles,
                                        max_code_rows,
                                        fill_panel_rows};

} // namespace corebound::kernels::COREBOUND_VARIANT
