// Checks and helpers shared by the operators: an argument that does not fit is an error that names it, what was
// expected and what was found.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>

#include "kernels/kernels.h"
#include "torch_ops/abi.h"

namespace corebound::torch_ops {

// torch turns the exception into a RuntimeError. (Its own check macro would add this file's path to the message.)
template <class... Parts> [[noreturn]] void fail(const Parts &...parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

inline std::string shape_text(const Tensor &t) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < t.dim(); ++i) {
    text << (i ? ", " : "") << t.size(i);
  }
  text << ']';
  return text.str();
}

inline const char *dtype_text(ScalarType type) {
  switch (type) {
  case ScalarType::Float:
    return "float32";
  case ScalarType::BFloat16:
    return "bfloat16";
  case ScalarType::Half:
    return "float16";
  case ScalarType::Double:
    return "float64";
  case ScalarType::Int:
    return "int32";
  case ScalarType::Long:
    return "int64";
  default:
    return "another type";
  }
}

// Returns the tensor with contiguous memory: itself, or a copy.
inline Tensor dense(const Tensor &t) { return t.is_contiguous() ? t : contiguous_copy(t); }

inline void check_type(const char *where, const Tensor &t, ScalarType expected) {
  if (!t.is_cpu()) {
    fail(where, ": expected a CPU tensor, found one on another device");
  }
  if (t.scalar_type() != expected) {
    fail(where, ": expected ", dtype_text(expected), ", found ", dtype_text(t.scalar_type()));
  }
}

// A size of -1 fits anything.
inline void check_shape(const char *where, const Tensor &t, std::initializer_list<int64_t> expected) {
  bool fits = t.dim() == static_cast<int64_t>(expected.size());
  int64_t i = 0;
  for (int64_t size : expected) {
    fits = fits && (size < 0 || t.size(i) == size);
    ++i;
  }
  if (fits) {
    return;
  }
  std::ostringstream text;
  for (int64_t size : expected) {
    text << (text.tellp() > 0 ? ", " : "");
    size < 0 ? text << '*' : text << size;
  }
  fail(where, ": expected shape [", text.str(), "], found ", shape_text(t));
}

inline void check(const char *where, const Tensor &t, ScalarType type, std::initializer_list<int64_t> shape) {
  check_type(where, t, type);
  check_shape(where, t, shape);
}

inline kernels::DType kernel_dtype(const char *where, const Tensor &t) {
  if (!t.is_cpu()) {
    fail(where, ": expected a CPU tensor, found one on another device");
  }
  switch (t.scalar_type()) {
  case ScalarType::Float:
    return kernels::DType::float32;
  case ScalarType::BFloat16:
    return kernels::DType::bfloat16;
  case ScalarType::Half:
    return kernels::DType::float16;
  default:
    fail(where, ": expected float32, bfloat16 or float16, found ", dtype_text(t.scalar_type()));
  }
}

// Checks that each block of two caches [blocks, kv heads, block size, head size] is contiguous and overlaps no other;
// returns by how many elements the blocks of both are apart.
inline int64_t block_stride(const char *where, const Tensor &keys, const Tensor &values) {
  for (const Tensor *cache : {&keys, &values}) {
    int64_t expected = 1;
    for (int64_t i = 3; i > 0; --i) {
      if (cache->size(i) > 1 && cache->stride(i) != expected) {
        fail(where, ": expected caches whose blocks are contiguous, found strided ones");
      }
      expected *= cache->size(i);
    }
    if (cache->size(0) > 1 && cache->stride(0) < expected) {
      fail(where, ": expected caches whose blocks do not overlap, found blocks of ", expected, " elements that are ",
           cache->stride(0), " apart");
    }
  }
  if (keys.size(0) > 1 && keys.stride(0) != values.stride(0)) {
    fail(where, ": blocks of keys are ", keys.stride(0), " elements apart, those of values ", values.stride(0),
         ", expected the same");
  }
  return keys.stride(0);
}

// A new contiguous tensor of the type of `like`, of at most four dimensions; no memory is allocated but the tensor's.
inline Tensor new_tensor(const Tensor &like, std::initializer_list<int64_t> shape) {
  int64_t strides[4] = {1, 1, 1, 1};
  const int64_t dims = static_cast<int64_t>(shape.size());
  for (int64_t i = dims - 2; i >= 0; --i) {
    strides[i] = strides[i + 1] * std::max<int64_t>(shape.begin()[i + 1], 1);
  }
  return empty_cpu_tensor(like, dims, shape.begin(), strides);
}

// Runs f(begin, end) over [0, count) in torch's own thread pool, at least `grain` at a time.
template <class F> void parallel(int64_t count, int64_t grain, const F &f) {
  if (count <= 0) {
    return;
  }
  if (count <= grain || num_threads() == 1) {
    f(int64_t{0}, count);
    return;
  }
  parallel_for(0, count, grain, f);
}

} // namespace corebound::torch_ops
