// The product with a weight matrix in panels as a torch operator, its panels shared out to torch's own threads.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include "kernels/panel.h"
#include "torch_ops/tensor_args.h"

namespace corebound::torch_ops {
namespace {

using kernels::active_kernels;
using kernels::PanelInput;
using kernels::PanelMatrix;
using kernels::PanelOutput;

// More rows are taken in parts, so that the working memory of a product stays in the caches.
constexpr int64_t max_part_rows = 256;
constexpr int64_t alignment = 64;

struct Free {
  void operator()(void *p) const { std::free(p); }
};
template <class T> using Memory = std::unique_ptr<T, Free>;

template <class T> Memory<T> allocate(int64_t count) {
  const size_t bytes =
      (static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(T) + alignment - 1) / alignment * alignment;
  auto *memory = static_cast<T *>(std::aligned_alloc(alignment, bytes));
  if (!memory) {
    throw std::bad_alloc();
  }
  return Memory<T>(memory);
}

PanelMatrix matrix_of(const Tensor &panels, int64_t outputs, int64_t inputs, int64_t kind, int64_t group_inputs,
                      int64_t scale_kind, bool asymmetric, bool gated) {
  if (outputs < 1 || inputs < 1 || kind < 0 || kind > 2 || scale_kind < 0 || scale_kind > 2 || group_inputs < 1 ||
      group_inputs % kernels::panel_input_unit || (gated && outputs % 2)) {
    fail("panel_linear: no such matrix: ", outputs, " outputs, ", inputs, " inputs, kind ", kind, ", groups of ",
         group_inputs, ", scale kind ", scale_kind);
  }
  // Blocks of inputs that are rounded together must not reach from a group into the next.
  if (kind > 0 && group_inputs < inputs && group_inputs > kernels::max_block_inputs &&
      group_inputs % kernels::max_block_inputs) {
    fail("panel_linear: no such matrix: expected groups of up to ", kernels::max_block_inputs,
         " inputs or a multiple of that, found ", group_inputs);
  }
  PanelMatrix matrix{};
  matrix.outputs = outputs;
  matrix.inputs = inputs;
  matrix.padded_inputs = (inputs + group_inputs - 1) / group_inputs * group_inputs;
  matrix.group_inputs = group_inputs;
  matrix.kind = static_cast<kernels::WeightKind>(kind);
  matrix.scale_kind = static_cast<kernels::ScaleKind>(scale_kind);
  matrix.asymmetric = asymmetric;
  matrix.gated = gated;
  check("panel_linear: panels", panels, ScalarType::Byte, {matrix.num_panels() * matrix.panel_bytes()});
  matrix.data = static_cast<const char *>(panels.const_data_ptr());
  if (reinterpret_cast<uintptr_t>(matrix.data) % alignment || !panels.is_contiguous()) {
    fail("panel_linear: panels: expected memory that starts at a multiple of ", alignment);
  }
  return matrix;
}

// Everything that one part of the rows needs. `out` has room for whole panels.
void multiply(const PanelMatrix &matrix, const uint16_t *x, int64_t rows, const PanelOutput &out) {
  const auto &kernels = active_kernels();
  PanelInput in{};
  in.x = x;
  in.rows = rows;
  in.stride = matrix.padded_inputs;
  Memory<uint16_t> tiles;
  Memory<int8_t> halves;
  Memory<float> blocks;
  Memory<uint8_t> has_low;
  if (kernels::reads_tiles(kernels, matrix, rows)) {
    tiles = allocate<uint16_t>(kernels::tile_elements(rows, matrix.padded_inputs));
    parallel((rows + 15) / 16, 1,
             [&](int64_t b, int64_t e) { kernels.make_tiles(in, matrix.padded_inputs, tiles.get(), b, e); });
    in.tiles = tiles.get();
  } else if (kernels::reads_whole_numbers(kernels, matrix, rows)) {
    const int64_t num_blocks = rows * matrix.num_blocks();
    const int64_t elements = kernels::rounded_rows(rows) * matrix.padded_inputs;
    halves = allocate<int8_t>(2 * elements);
    blocks = allocate<float>(2 * num_blocks);
    has_low = allocate<uint8_t>(num_blocks);
    const kernels::RoundedRows rounded = {halves.get(), halves.get() + elements, blocks.get(),
                                          blocks.get() + num_blocks, has_low.get()};
    in.rounded = kernels::rounded_for(kernels, rounded, rows);
    kernels.round_rows(matrix, in, in.rounded);
  }
  parallel(matrix.num_panels(), 1, [&](int64_t b, int64_t e) {
    const auto scratch = allocate<float>(kernels::panel_scratch_floats(rows));
    constexpr int64_t most = kernels::max_panels_together;
    for (int64_t panel = b; panel < e; panel += most) {
      kernels.panel_products(matrix, panel, std::min(most, e - panel), in, out, scratch.get());
    }
  });
}

Tensor panel_linear(const Tensor &x, const Tensor &panels, const std::optional<Tensor> &bias, int64_t outputs,
                    int64_t inputs, int64_t kind, int64_t group_inputs, int64_t scale_kind, bool asymmetric, bool gated,
                    int64_t activation) {
  const Tensor in = dense(x);
  check("panel_linear: x", in, ScalarType::BFloat16, {-1, inputs});
  const PanelMatrix matrix = matrix_of(panels, outputs, inputs, kind, group_inputs, scale_kind, asymmetric, gated);
  if (activation < 0 || activation > 2 || (activation == 2) != gated) {
    fail("panel_linear: activation ", activation, " does not go with a ", gated ? "gated" : "plain", " matrix");
  }
  std::optional<Tensor> shift;
  if (bias) {
    shift = dense(*bias);
    check("panel_linear: bias", *shift, ScalarType::BFloat16, {matrix.num_panels() * kernels::panel_outputs});
  }
  const int64_t rows = in.size(0), columns = gated ? outputs / 2 : outputs;
  const int64_t width = matrix.num_panels() * (gated ? kernels::panel_outputs / 2 : kernels::panel_outputs);
  Tensor out = new_tensor(in, {rows, columns});
  auto *result = static_cast<uint16_t *>(out.mutable_data_ptr());
  const auto *source = static_cast<const uint16_t *>(in.const_data_ptr());
  Memory<uint16_t> padded, whole;
  if (matrix.padded_inputs != inputs) {
    padded = allocate<uint16_t>(std::min(rows, max_part_rows) * matrix.padded_inputs);
    std::memset(padded.get(), 0, static_cast<size_t>(std::min(rows, max_part_rows) * matrix.padded_inputs) * 2);
  }
  if (width != columns) {
    whole = allocate<uint16_t>(std::min(rows, max_part_rows) * width);
  }
  for (int64_t first = 0; first < rows; first += max_part_rows) {
    const int64_t count = std::min(rows - first, max_part_rows);
    const uint16_t *from = source + first * inputs;
    if (padded) {
      for (int64_t row = 0; row < count; ++row) {
        std::memcpy(padded.get() + row * matrix.padded_inputs, from + row * inputs, static_cast<size_t>(inputs) * 2);
      }
      from = padded.get();
    }
    PanelOutput to{};
    to.y = whole ? whole.get() : result + first * columns;
    to.bias = shift ? static_cast<const uint16_t *>(shift->const_data_ptr()) : nullptr;
    to.stride = width;
    to.activation = static_cast<kernels::Activation>(activation);
    multiply(matrix, from, count, to);
    for (int64_t row = 0; whole && row < count; ++row) {
      std::memcpy(result + (first + row) * columns, whole.get() + row * width, static_cast<size_t>(columns) * 2);
    }
  }
  return out;
}

} // namespace

COREBOUND_SCHEMAS(m) {
  m.def("panel_linear(Tensor x, Tensor panels, Tensor? bias, int outputs, int inputs, int kind, int group_inputs, "
        "int scale_kind, bool asymmetric, bool gated, int activation) -> Tensor");
}

COREBOUND_KERNELS(CPU, m) { m.impl("panel_linear", COREBOUND_KERNEL(panel_linear)); }

} // namespace corebound::torch_ops
