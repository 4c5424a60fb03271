// The only file that knows by which interface the operators reach torch: tensors, registration, torch's thread pool.
//
// COREBOUND_TORCH_ABI_CLASSIC undefined: torch's stable ABI, so that one build serves torch 2.10 and later. Defined:
// the C++ API of exactly the torch that it was built against, for the one flavour whose torch is older (IPEX,
// torch 2.8). Both give the same names in corebound::torch_ops and the same macros, and the operators use nothing else
// of torch.
#pragma once

#include <cstdint>
#include <vector>

#ifdef COREBOUND_TORCH_ABI_CLASSIC

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#define COREBOUND_OPERATORS(m) TORCH_LIBRARY(corebound, m)
#define COREBOUND_SCHEMAS(m) TORCH_LIBRARY_FRAGMENT(corebound, m)
#define COREBOUND_KERNELS(dispatch_key, m) TORCH_LIBRARY_IMPL(corebound, dispatch_key, m)
#define COREBOUND_KERNEL(function) TORCH_FN(function)

namespace corebound::torch_ops {

using at::ScalarType;
using at::Tensor;

inline Tensor contiguous_copy(const Tensor &t) { return t.contiguous(); }
inline void copy_into(Tensor &target, const Tensor &source) { target.copy_(source); }

inline Tensor empty_cpu_tensor(const Tensor &like, int64_t num_dims, const int64_t *sizes, const int64_t *strides) {
  const auto dims = static_cast<size_t>(num_dims);
  return at::empty_strided({sizes, dims}, {strides, dims}, like.options());
}

inline int num_threads() { return at::get_num_threads(); }

template <class F> void parallel_for(int64_t begin, int64_t end, int64_t grain, const F &f) {
  at::parallel_for(begin, end, grain, f);
}

} // namespace corebound::torch_ops

#else

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define COREBOUND_OPERATORS(m) STABLE_TORCH_LIBRARY(corebound, m)
#define COREBOUND_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(corebound, m)
#define COREBOUND_KERNELS(dispatch_key, m) STABLE_TORCH_LIBRARY_IMPL(corebound, dispatch_key, m)
#define COREBOUND_KERNEL(function) TORCH_BOX(&function)

namespace corebound::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor contiguous_copy(const Tensor &t) { return torch::stable::contiguous(t); }
inline void copy_into(Tensor &target, const Tensor &source) { torch::stable::copy_(target, source); }

// The C function skips the dispatcher, which matters for small operators.
inline Tensor empty_cpu_tensor(const Tensor &like, int64_t num_dims, const int64_t *sizes, const int64_t *strides) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(num_dims, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

template <class F> void parallel_for(int64_t begin, int64_t end, int64_t grain, const F &f) {
  torch::stable::parallel_for(begin, end, grain, f);
}

} // namespace corebound::torch_ops

#endif

namespace corebound::torch_ops {

// A new contiguous tensor of any number of dimensions and of the type of `like`, which is on the CPU.
inline Tensor empty_tensor(const Tensor &like, const std::vector<int64_t> &sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) {
    strides[i - 1] = strides[i] * (sizes[i] > 1 ? sizes[i] : 1);
  }
  return empty_cpu_tensor(like, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data());
}

inline std::vector<int64_t> shape_of(const Tensor &t) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < t.dim(); ++i) {
    shape.push_back(t.size(i));
  }
  return shape;
}

} // namespace corebound::torch_ops
