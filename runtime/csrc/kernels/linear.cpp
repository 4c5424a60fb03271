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

template <class T, int M, int S>
void write_outputs(const LinearArgs &args, const float *sums, int64_t row, int64_t stride) {
  const T *bias = static_cast<const T *>(args.bias);
  T *y = static_cast<T *>(args.y);
  for (int s = 0; s < S; ++s) {
    const int64_t n = row + s * stride;
    const float add = bias ? to_float(bias[n]) : 0.0F;
    for (int m = 0; m < M; ++m) {
      y[m * args.outputs + n] = from_float<T>(sums[m * S + s] + add);
    }
  }
}

template <class T, int M, int S>
void linear_streams(const LinearArgs &args, int64_t begin, int64_t count, int64_t stride) {
  const T *x = static_cast<const T *>(args.x), *weight = static_cast<const T *>(args.weight);
  for (int64_t row = begin; row < begin + count; ++row) {
    const T *rows[S];
    for (int s = 0; s < S; ++s) {
      rows[s] = weight + (row + s * stride) * args.inputs;
    }
    float sums[M * S];
    dot_block<M, S, unroll<M>, false>(x, args.inputs, rows, args.inputs, sums);
    write_outputs<T, M, S>(args, sums, row, stride);
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
