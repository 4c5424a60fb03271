// Memory for rows in whole numbers.
#pragma once

#include "decoder/memory.h"
#include "kernels/panel.h"

namespace corebound::decoder {

class RoundedBuffers {
public:
  // Room for rows of so many inputs and blocks, of all rows together.
  kernels::RoundedRows get(int64_t elements, int64_t blocks) {
    return {high_.get(elements), low_.get(elements), scales_.get(blocks), sums_.get(blocks), has_low_.get(blocks)};
  }

private:
  Buffer<int8_t> high_, low_;
  Buffer<float> scales_, sums_;
  Buffer<uint8_t> has_low_;
};

} // namespace corebound::decoder
