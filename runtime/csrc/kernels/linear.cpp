// The matrix-vector product of decode. It is bound by memory, so what matters is how the weight is read: as one
// ascending stream, a row at a time, which the hardware prefetcher follows at full speed. Reading neighbouring rows
// side by side costs a third of the bandwidth, and software prefetch gains nothing. With several inputs the loads of
// the inputs from the cache become the bottleneck; then a few streams, far apart, share every one of them.
#include "kernels/dot.h"
#include "kernels/ops_internal.h"

COREBOUND_BEGIN_VARIANT

// Streams by number of inputs: as many as the accumulators of all pairs leave registers for.
constexpr int streams_of_32_registers[] = {1, 4, 3, 6, 4, 4, 3, 3};
constexpr int streams_of_16_registers[] = {1, 2, 2, 2, 1, 1, 1, 1};

template <int M>
constexpr int num_streams = Vec::width == 16 ? streams_of_32_registers[M - 1] : streams_of_16_registers[M - 1];
template <int M> constexpr int unroll = M == 1 ? 4 : M == 2 ? 2 : 1;

// Outputs of a stream are converted and written 16 at a time: doing it after every row costs a tenth of the bandwidth.
constexpr int64_t row_block = 16;

// y[row + s * stride + i] for i < count, from sums[(m * S + s) * row_block + i].
template <class T, int M, int S>
void write_outputs(const LinearArgs &args, const float *sums, int64_t row, int64_t stride, int64_t count) {
  const T *bias = static_cast<const T *>(args.bias);
  T *y = static_cast<T *>(args.y);
  for (int s = 0; s < S; ++s) {
    for (int64_t i = 0; i < count; i += Vec::width) {
      const int64_t n = row + s * stride + i;
      const Vec add = bias ? load_upto(bias + n, count - i) : Vec::zero();
      for (int m = 0; m < M; ++m) {
        store_upto(Vec::load(sums + (m * S + s) * row_block + i) + add, y + m * args.outputs + n, count - i);
      }
    }
  }
}

template <class T, int M, int S>
void linear_streams(const LinearArgs &args, int64_t begin, int64_t count, int64_t stride) {
  const T *x = static_cast<const T *>(args.x), *weight = static_cast<const T *>(args.weight);
  float sums[M * S * row_block] = {};
  for (int64_t row = begin; row < begin + count; row += row_block) {
    const int64_t block = begin + count - row < row_block ? begin + count - row : row_block;
    for (int64_t i = 0; i < block; ++i) {
      const T *rows[S];
      for (int s = 0; s < S; ++s) {
        rows[s] = weight + (row + i + s * stride) * args.inputs;
      }
      float out[M * S];
      dot_block<M, S, unroll<M>, false>(x, args.inputs, rows, args.inputs, out);
      for (int k = 0; k < M * S; ++k) {
        sums[k * row_block + i] = out[k];
      }
    }
    write_outputs<T, M, S>(args, sums, row, stride, block);
  }
}

template <class T, int M> void linear_rows(const LinearArgs &args, int64_t begin, int64_t end) {
  constexpr int streams = num_streams<M>;
  const int64_t stride = (end - begin) / streams;
  linear_streams<T, M, streams>(args, begin, stride, stride);
  if (const int64_t rest = begin + streams * stride; rest < end) {
    linear_streams<T, M, 1>(args, rest, end - rest, 0);
  }
}

template <class T> void linear_range(const LinearArgs &args, int64_t begin, int64_t end) {
  switch (args.rows) {
  case 1:
    return linear_rows<T, 1>(args, begin, end);
  case 2:
    return linear_rows<T, 2>(args, begin, end);
  case 3:
    return linear_rows<T, 3>(args, begin, end);
  case 4:
    return linear_rows<T, 4>(args, begin, end);
  case 5:
    return linear_rows<T, 5>(args, begin, end);
  case 6:
    return linear_rows<T, 6>(args, begin, end);
  case 7:
    return linear_rows<T, 7>(args, begin, end);
  case 8:
    return linear_rows<T, 8>(args, begin, end);
  default:
    return;
  }
}

COREBOUND_END_VARIANT

namespace corebound::kernels::COREBOUND_VARIANT {

void linear(const LinearArgs &args, int64_t begin, int64_t end) {
  with_dtype(args.dtype, [&]<class T>(T *) { linear_range<T>(args, begin, end); });
}

} // namespace corebound::kernels::COREBOUND_VARIANT
