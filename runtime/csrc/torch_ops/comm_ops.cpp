// The shared-memory collectives as torch operators, so that torch.compile can trace them.
//
// Failures are raised as RuntimeError whose text starts with "corebound-comm <code>: "; corebound.comm turns them into
// its own exceptions. The in-place operators return nothing: that is the form torch can functionalise.
#include <stdexcept>
#include <string>
#include <vector>

#include "comm/api.h"
#include "torch_ops/abi.h"

namespace corebound::torch_ops {
namespace {

constexpr int bytes_only = 4; // the DType that can be moved and not summed

int dtype_code(ScalarType dtype) {
  switch (dtype) {
  case ScalarType::Float:
    return 0;
  case ScalarType::BFloat16:
    return 1;
  case ScalarType::Half:
    return 2;
  case ScalarType::Int:
    return 3;
  default:
    return bytes_only;
  }
}

void check(int code) {
  if (code != 0) [[unlikely]] {
    throw std::runtime_error("corebound-comm " + std::to_string(code) + ": " + corebound_comm_error());
  }
}

int64_t num_bytes(const Tensor &x) { return x.numel() * static_cast<int64_t>(x.element_size()); }

void sum_into(const Tensor &whole, int64_t group, double timeout_s) {
  check(corebound_comm_all_reduce(group, whole.mutable_data_ptr(), whole.numel(), dtype_code(whole.scalar_type()),
                                  timeout_s));
}

void shm_all_reduce_(Tensor x, int64_t group, double timeout_s) {
  if (x.is_contiguous()) [[likely]] {
    return sum_into(x, group, timeout_s);
  }
  Tensor whole = contiguous_copy(x);
  sum_into(whole, group, timeout_s);
  copy_into(x, whole);
}

Tensor shm_all_reduce(Tensor x, int64_t group, double timeout_s) {
  Tensor result = empty_tensor(x, shape_of(x));
  copy_into(result, x);
  sum_into(result, group, timeout_s);
  return result;
}

// `size` is an argument so that the result's shape is known when the operator is traced.
Tensor shm_all_gather(Tensor x, int64_t group, int64_t size, double timeout_s) {
  if (size != corebound_comm_size(group)) {
    throw std::runtime_error("corebound-comm 3: shm all_gather: the group does not have " + std::to_string(size) +
                             " members");
  }
  Tensor whole = contiguous_copy(x);
  std::vector<int64_t> shape = shape_of(x);
  shape.insert(shape.begin(), size);
  Tensor result = empty_tensor(x, shape);
  check(
      corebound_comm_all_gather(group, whole.const_data_ptr(), result.mutable_data_ptr(), num_bytes(whole), timeout_s));
  return result;
}

void shm_broadcast_(Tensor x, int64_t group, int64_t root, double timeout_s) {
  const bool in_place = x.is_contiguous();
  Tensor whole = in_place ? x : contiguous_copy(x);
  check(corebound_comm_broadcast(group, whole.mutable_data_ptr(), num_bytes(whole), static_cast<int>(root), timeout_s));
  if (!in_place) {
    copy_into(x, whole);
  }
}

void shm_barrier(int64_t group, double timeout_s) { check(corebound_comm_barrier(group, timeout_s)); }

} // namespace

COREBOUND_SCHEMAS(m) {
  m.def("shm_all_reduce_(Tensor(a!) x, int group, float timeout_s=-1.0) -> ()");
  m.def("shm_all_reduce(Tensor x, int group, float timeout_s=-1.0) -> Tensor");
  m.def("shm_all_gather(Tensor x, int group, int size, float timeout_s=-1.0) -> Tensor");
  m.def("shm_broadcast_(Tensor(a!) x, int group, int root=0, float timeout_s=-1.0) -> ()");
  m.def("shm_barrier(int group, float timeout_s=-1.0) -> ()");
}

COREBOUND_KERNELS(CPU, m) {
  m.impl("shm_all_reduce_", COREBOUND_KERNEL(shm_all_reduce_));
  m.impl("shm_all_reduce", COREBOUND_KERNEL(shm_all_reduce));
  m.impl("shm_all_gather", COREBOUND_KERNEL(shm_all_gather));
  m.impl("shm_broadcast_", COREBOUND_KERNEL(shm_broadcast_));
}

COREBOUND_KERNELS(CompositeExplicitAutograd, m) { m.impl("shm_barrier", COREBOUND_KERNEL(shm_barrier)); }

} // namespace corebound::torch_ops
