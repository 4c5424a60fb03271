// The kernels as torch operators: schemas, argument checks, and the split of the work over torch's threads. Functions
// for abstract tensors (torch.compile) are in Python beside the loader.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "torch_ops/tensor_args.h"

namespace corebound::torch_ops {
namespace {

using kernels::active_kernels;

// Elements below which a second thread costs more than it saves.
constexpr int64_t grain_elements = 16384;

int64_t rows_per_thread(int64_t width) { return std::max<int64_t>(1, grain_elements / std::max<int64_t>(1, width)); }

struct Norm {
  Tensor x, weight, y;
  kernels::NormArgs args{};

  Norm(const char *op, const Tensor &input, const Tensor &scale, double eps) : x(dense(input)), weight(dense(scale)) {
    args.dtype = kernel_dtype(op, x);
    check_shape(op, x, {-1, -1});
    check(op, weight, x.scalar_type(), {x.size(1)});
    y = new_tensor(x, {x.size(0), x.size(1)});
    args.x = x.const_data_ptr();
    args.weight = weight.const_data_ptr();
    args.y = y.mutable_data_ptr();
    args.width = x.size(1);
    args.eps = static_cast<float>(eps);
  }

  void run(void (*kernel)(const kernels::NormArgs &, int64_t, int64_t)) {
    if (args.width > 0) {
      parallel(x.size(0), rows_per_thread(args.width), [&](int64_t b, int64_t e) { kernel(args, b, e); });
    }
  }
};

Tensor layer_norm(const Tensor &x, const Tensor &weight, const Tensor &bias, double eps) {
  Norm norm("layer_norm", x, weight, eps);
  const Tensor shift = dense(bias);
  check("layer_norm: bias", shift, norm.x.scalar_type(), {norm.args.width});
  norm.args.bias = shift.const_data_ptr();
  norm.run(active_kernels().layer_norm);
  return norm.y;
}

Tensor rms_norm(const Tensor &x, const Tensor &weight, double eps) {
  Norm norm("rms_norm", x, weight, eps);
  norm.run(active_kernels().rms_norm);
  return norm.y;
}

// Adds the residual's part to `norm` and returns the tensor that receives the sum.
Tensor with_residual(const char *op, Norm &norm, const Tensor &residual) {
  check(op, residual, norm.x.scalar_type(), {norm.x.size(0), norm.x.size(1)});
  Tensor sum = new_tensor(norm.x, {norm.x.size(0), norm.x.size(1)});
  norm.args.residual = residual.const_data_ptr();
  norm.args.sum = sum.mutable_data_ptr();
  return sum;
}

std::tuple<Tensor, Tensor> add_layer_norm(const Tensor &x, const Tensor &residual, const Tensor &weight,
                                          const Tensor &bias, double eps) {
  Norm norm("add_layer_norm", x, weight, eps);
  const Tensor added = dense(residual), shift = dense(bias);
  check("add_layer_norm: bias", shift, norm.x.scalar_type(), {norm.args.width});
  norm.args.bias = shift.const_data_ptr();
  Tensor sum = with_residual("add_layer_norm: residual", norm, added);
  norm.run(active_kernels().layer_norm);
  return {norm.y, sum};
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor &x, const Tensor &residual, const Tensor &weight, double eps) {
  Norm norm("add_rms_norm", x, weight, eps);
  const Tensor added = dense(residual);
  Tensor sum = with_residual("add_rms_norm: residual", norm, added);
  norm.run(active_kernels().rms_norm);
  return {norm.y, sum};
}

std::tuple<Tensor, Tensor, Tensor> split_qkv(const Tensor &qkv, bool per_head, int64_t num_heads, int64_t num_kv_heads,
                                             int64_t head_dim) {
  const Tensor in = dense(qkv);
  kernel_dtype("split_qkv", in);
  if (num_heads < 1 || num_kv_heads < 1 || head_dim < 1) {
    fail("split_qkv: expected at least one head of at least one dimension, found ", num_heads, " query heads, ",
         num_kv_heads, " kv heads, head size ", head_dim);
  }
  if (per_head && num_heads != num_kv_heads) {
    fail("split_qkv: layout per_head needs equal head counts, found ", num_heads, " query and ", num_kv_heads, " kv");
  }
  check_shape("split_qkv", in, {-1, (num_heads + 2 * num_kv_heads) * head_dim});
  const int64_t tokens = in.size(0);
  Tensor q = new_tensor(in, {tokens, num_heads, head_dim});
  Tensor k = new_tensor(in, {tokens, num_kv_heads, head_dim}), v = new_tensor(in, {tokens, num_kv_heads, head_dim});
  const kernels::SplitQkvArgs args = {in.const_data_ptr(),
                                      q.mutable_data_ptr(),
                                      k.mutable_data_ptr(),
                                      v.mutable_data_ptr(),
                                      num_heads,
                                      num_kv_heads,
                                      head_dim,
                                      per_head,
                                      static_cast<int64_t>(in.element_size())};
  const auto kernel = active_kernels().split_qkv;
  parallel(tokens, rows_per_thread(in.size(1)), [&](int64_t b, int64_t e) { kernel(args, b, e); });
  return {q, k, v};
}

Tensor rotate(const Tensor &in, const kernels::RotaryArgs &common) {
  Tensor out = new_tensor(in, {in.size(0), in.size(1), in.size(2)});
  kernels::RotaryArgs args = common;
  args.x = in.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.heads = in.size(1);
  args.head_dim = in.size(2);
  const auto kernel = active_kernels().rotary;
  parallel(in.size(0), rows_per_thread(args.heads * args.head_dim), [&](int64_t b, int64_t e) { kernel(args, b, e); });
  return out;
}

std::tuple<Tensor, Tensor> rotary(const Tensor &q, const Tensor &k, const Tensor &positions, const Tensor &cos,
                                  const Tensor &sin, bool interleaved) {
  const Tensor queries = dense(q), keys = dense(k), places = dense(positions), cosines = dense(cos), sines = dense(sin);
  kernels::RotaryArgs args{};
  args.dtype = kernel_dtype("rotary", queries);
  check_shape("rotary: q", queries, {-1, -1, -1});
  check("rotary: k", keys, queries.scalar_type(), {queries.size(0), -1, queries.size(2)});
  check("rotary: positions", places, ScalarType::Long, {queries.size(0)});
  check("rotary: cos", cosines, ScalarType::Float, {-1, -1});
  check("rotary: sin", sines, ScalarType::Float, {cosines.size(0), cosines.size(1)});
  args.half = cosines.size(1);
  if (2 * args.half > queries.size(2)) {
    fail("rotary: cos has ", args.half, " columns, expected at most half the head size ", queries.size(2));
  }
  args.positions = static_cast<const int64_t *>(places.const_data_ptr());
  for (int64_t i = 0; i < places.size(0); ++i) {
    if (args.positions[i] < 0 || args.positions[i] >= cosines.size(0)) {
      fail("rotary: position ", args.positions[i], " of token ", i, ", expected 0 to ", cosines.size(0) - 1);
    }
  }
  args.cos = static_cast<const float *>(cosines.const_data_ptr());
  args.sin = static_cast<const float *>(sines.const_data_ptr());
  args.interleaved = interleaved;
  return {rotate(queries, args), rotate(keys, args)};
}

// Checks that both caches are [blocks, kv heads, block size, head size] of one type, and returns their block stride.
int64_t check_caches(const char *op, const Tensor &key_cache, const Tensor &value_cache, ScalarType type) {
  check(op, key_cache, type, {-1, -1, -1, -1});
  check(op, value_cache, type, {key_cache.size(0), key_cache.size(1), key_cache.size(2), key_cache.size(3)});
  return block_stride(op, key_cache, value_cache);
}

void store_kv(const Tensor &k, const Tensor &v, const Tensor &key_cache, const Tensor &value_cache,
              const Tensor &slots) {
  const Tensor keys = dense(k), values = dense(v), places = dense(slots);
  kernel_dtype("store_kv", keys);
  const int64_t stride = check_caches("store_kv: cache", key_cache, value_cache, keys.scalar_type());
  check_shape("store_kv: k", keys, {-1, key_cache.size(1), key_cache.size(3)});
  check("store_kv: v", values, keys.scalar_type(), {keys.size(0), keys.size(1), keys.size(2)});
  check("store_kv: slots", places, ScalarType::Long, {keys.size(0)});
  const auto *slot = static_cast<const int64_t *>(places.const_data_ptr());
  const int64_t num_slots = key_cache.size(0) * key_cache.size(2);
  for (int64_t i = 0; i < places.size(0); ++i) {
    if (slot[i] < 0 || slot[i] >= num_slots) {
      fail("store_kv: slot ", slot[i], " of token ", i, ", expected 0 to ", num_slots - 1);
    }
  }
  const kernels::StoreKvArgs args = {keys.const_data_ptr(),
                                     values.const_data_ptr(),
                                     key_cache.mutable_data_ptr(),
                                     value_cache.mutable_data_ptr(),
                                     slot,
                                     key_cache.size(1),
                                     key_cache.size(3),
                                     key_cache.size(2),
                                     stride,
                                     static_cast<int64_t>(keys.element_size())};
  const auto kernel = active_kernels().store_kv;
  parallel(keys.size(0), rows_per_thread(2 * args.kv_heads * args.head_dim),
           [&](int64_t b, int64_t e) { kernel(args, b, e); });
}

Tensor gelu(const Tensor &x, bool exact) {
  const Tensor in = dense(x);
  const kernels::DType dtype = kernel_dtype("gelu", in);
  Tensor out = empty_tensor(in, shape_of(in));
  const kernels::UnaryArgs args = {in.const_data_ptr(), out.mutable_data_ptr(), exact, dtype};
  const auto kernel = active_kernels().gelu;
  parallel(in.numel(), grain_elements, [&](int64_t b, int64_t e) { kernel(args, b, e); });
  return out;
}

Tensor silu_mul(const Tensor &gate_up) {
  const Tensor in = dense(gate_up);
  const kernels::DType dtype = kernel_dtype("silu_mul", in);
  check_shape("silu_mul", in, {-1, -1});
  if (in.size(1) % 2) {
    fail("silu_mul: expected an even number of columns, found ", in.size(1));
  }
  const int64_t width = in.size(1) / 2;
  Tensor out = new_tensor(in, {in.size(0), width});
  const kernels::SiluMulArgs args = {in.const_data_ptr(), out.mutable_data_ptr(), width, dtype};
  const auto kernel = active_kernels().silu_mul;
  parallel(in.size(0), rows_per_thread(width), [&](int64_t b, int64_t e) { kernel(args, b, e); });
  return out;
}

Tensor linear(const Tensor &x, const Tensor &weight, const std::optional<Tensor> &bias) {
  const Tensor in = dense(x), matrix = dense(weight);
  kernels::LinearArgs args{};
  args.dtype = kernel_dtype("linear", in);
  check_shape("linear: x", in, {-1, -1});
  check("linear: weight", matrix, in.scalar_type(), {-1, in.size(1)});
  args.rows = in.size(0);
  args.inputs = in.size(1);
  args.outputs = matrix.size(0);
  if (args.rows > kernels::max_linear_rows) {
    fail("linear: expected at most ", kernels::max_linear_rows, " rows, found ", args.rows);
  }
  std::optional<Tensor> shift;
  if (bias) {
    shift = dense(*bias);
    check("linear: bias", *shift, in.scalar_type(), {args.outputs});
    args.bias = shift->const_data_ptr();
  }
  Tensor out = new_tensor(in, {args.rows, args.outputs});
  args.x = in.const_data_ptr();
  args.weight = matrix.const_data_ptr();
  args.y = out.mutable_data_ptr();
  if (args.rows > 0) {
    const auto kernel = active_kernels().linear;
    parallel(args.outputs, rows_per_thread(args.inputs), [&](int64_t b, int64_t e) { kernel(args, b, e); });
  }
  return out;
}

} // namespace

COREBOUND_SCHEMAS(m) {
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def("add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)");
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("split_qkv(Tensor qkv, bool per_head, int num_heads, int num_kv_heads, int head_dim) -> "
        "(Tensor, Tensor, Tensor)");
  m.def("rotary(Tensor q, Tensor k, Tensor positions, Tensor cos, Tensor sin, bool interleaved) -> (Tensor, Tensor)");
  m.def("store_kv(Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slots) -> ()");
  m.def("gelu(Tensor x, bool exact) -> Tensor");
  m.def("silu_mul(Tensor gate_up) -> Tensor");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
}

COREBOUND_KERNELS(CPU, m) {
  m.impl("layer_norm", COREBOUND_KERNEL(layer_norm));
  m.impl("add_layer_norm", COREBOUND_KERNEL(add_layer_norm));
  m.impl("rms_norm", COREBOUND_KERNEL(rms_norm));
  m.impl("add_rms_norm", COREBOUND_KERNEL(add_rms_norm));
  m.impl("split_qkv", COREBOUND_KERNEL(split_qkv));
  m.impl("rotary", COREBOUND_KERNEL(rotary));
  m.impl("store_kv", COREBOUND_KERNEL(store_kv));
  m.impl("gelu", COREBOUND_KERNEL(gelu));
  m.impl("silu_mul", COREBOUND_KERNEL(silu_mul));
  m.impl("linear", COREBOUND_KERNEL(linear));
}

} // namespace corebound::torch_ops
