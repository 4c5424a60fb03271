// The C functions that Python calls: matrices into panels, and steps.
#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "decoder/walker.h"

using corebound::decoder::Buffer;
using corebound::decoder::Model;
using corebound::decoder::Step;
using corebound::decoder::Walker;
using corebound::kernels::Activation;
using corebound::kernels::PackArgs;
using corebound::kernels::PanelInput;
using corebound::kernels::PanelMatrix;
using corebound::kernels::PanelOutput;

// A code that no collective has: an exception of our own.
constexpr int failed_itself = 100;

namespace {
thread_local std::string last_error;
}

COREBOUND_API const char *corebound_decoder_error(void) { return last_error.c_str(); }

COREBOUND_API int64_t corebound_panel_matrix_bytes(const PanelMatrix *matrix) {
  return matrix->num_panels() * matrix->panel_bytes();
}

COREBOUND_API void corebound_panel_pack(const PackArgs *args) { corebound::kernels::pack_rows(*args); }

COREBOUND_API void corebound_panel_unpack_row(const PanelMatrix *matrix, int64_t row, uint16_t *out) {
  corebound::kernels::unpack_row(*matrix, row, out);
}

// The whole product on the calling thread, by the active variant: for tests, and for layers outside a decoder.
// `reading` is one of kernels::Reading.
COREBOUND_API void corebound_panel_multiply(const PanelMatrix *matrix, const uint16_t *x, int64_t rows, int64_t stride,
                                            const PanelOutput *out, int reading) {
  const auto &kernels = corebound::kernels::active_kernels();
  Buffer<uint16_t> tiles;
  corebound::decoder::RoundedBuffers rounded;
  Buffer<float> scratch;
  PanelInput in{};
  in.x = x;
  in.rows = rows;
  in.stride = stride;
  in.reading = static_cast<corebound::kernels::Reading>(reading);
  if (corebound::kernels::reads_tiles(kernels, *matrix, rows)) {
    uint16_t *made = tiles.get(corebound::kernels::tile_elements(rows, matrix->padded_inputs));
    kernels.make_tiles(in, matrix->padded_inputs, made, 0, (rows + 15) / 16);
    in.tiles = made;
  }
  if (corebound::kernels::reads_whole_numbers(kernels, *matrix, rows)) {
    const int64_t elements = corebound::kernels::rounded_rows(rows) * matrix->padded_inputs;
    in.rounded = corebound::kernels::rounded_for(kernels, rounded.get(elements, rows * matrix->num_blocks()), rows);
    kernels.round_rows(*matrix, in, in.rounded);
  }
  float *memory = scratch.get(corebound::kernels::panel_scratch_floats(rows));
  constexpr int64_t most = corebound::kernels::max_panels_together;
  for (int64_t panel = 0; panel < matrix->num_panels(); panel += most) {
    kernels.panel_products(*matrix, panel, std::min(most, matrix->num_panels() - panel), in, *out, memory);
  }
}

// `model` is copied; what it points to must live as long as the decoder. Null after an error.
COREBOUND_API void *corebound_decoder_create(const Model *model, const int *cpus, int num_cpus) {
  try {
    return new Walker(*model, std::vector<int>(cpus, cpus + num_cpus));
  } catch (const std::exception &error) {
    last_error = error.what();
    return nullptr;
  }
}

// Tries how to read the weights here: the seconds of each of kernels::Reading. Returns -1 after an error.
COREBOUND_API int corebound_decoder_time_readings(void *decoder, double *seconds) {
  try {
    static_cast<Walker *>(decoder)->time_readings(seconds);
    return 0;
  } catch (const std::exception &error) {
    last_error = error.what();
    return -1;
  }
}

COREBOUND_API void corebound_decoder_read_as(void *decoder, int reading) {
  static_cast<Walker *>(decoder)->read_as(static_cast<corebound::kernels::Reading>(reading));
}

COREBOUND_API int corebound_decoder_run(void *decoder, const Step *step) {
  try {
    return static_cast<Walker *>(decoder)->run(*step);
  } catch (const std::exception &error) {
    last_error = error.what();
    return failed_itself;
  }
}

COREBOUND_API int corebound_decoder_run_greedily(void *decoder, const Step *step, int64_t num_steps, float *values,
                                                 int32_t *words, int64_t *num_done) {
  try {
    return static_cast<Walker *>(decoder)->run_greedily(*step, num_steps, values, words, num_done);
  } catch (const std::exception &error) {
    last_error = error.what();
    return failed_itself;
  }
}

COREBOUND_API void corebound_decoder_destroy(void *decoder) { delete static_cast<Walker *>(decoder); }
