#include "comm/reduce.h"

namespace corebound::comm {

size_t element_bytes(DType dtype) {
  switch (dtype) {
  case DType::float32:
  case DType::int32:
    return 4;
  case DType::bfloat16:
  case DType::float16:
    return 2;
  case DType::bytes:
    break;
  }
  return 1;
}

const char *dtype_name(DType dtype) {
  constexpr const char *names[] = {"float32", "bfloat16", "float16", "int32", "bytes"};
  return names[static_cast<int>(dtype)];
}

const Arithmetic &arithmetic(isa::Variant variant) {
  switch (variant) {
  case isa::Variant::amx:
  case isa::Variant::avx512_bf16:
    return arithmetic_avx512_bf16;
  case isa::Variant::avx512_vnni:
  case isa::Variant::avx512:
    return arithmetic_avx512;
  case isa::Variant::avx2:
    return arithmetic_avx2;
  case isa::Variant::generic:
    break;
  }
  return arithmetic_generic;
}

} // namespace corebound::comm
