// Decides which variant is active, and reports the decision as JSON.
#include <algorithm>
#include <atomic>
#include <cstdio>

#include "isa/isa.h"

namespace corebound::isa {
namespace {

struct Requirement {
  const char *name; // a feature of Machine::features, or one of the operating system's parts below
  Variant from;     // needed by this variant and all above it
};

constexpr Requirement requirements[] = {
    {"avx2", Variant::avx2},
    {"fma", Variant::avx2},
    {"f16c", Variant::avx2},
    {"os_avx", Variant::avx2},
    {"avx512f", Variant::avx512},
    {"avx512bw", Variant::avx512},
    {"avx512vl", Variant::avx512},
    {"avx512dq", Variant::avx512},
    {"os_avx512", Variant::avx512},
    {"avx512_vnni", Variant::avx512_vnni},
    {"avx512_bf16", Variant::avx512_bf16},
    {"amx_tile", Variant::amx},
    {"amx_bf16", Variant::amx},
    {"amx_int8", Variant::amx},
    {"os_amx", Variant::amx},
    {"amx_permission", Variant::amx},
};

constexpr const char *names[num_variants] = {"generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

bool has(const Machine &m, std::string_view what) {
  if (what == "os_avx") {
    return m.os_avx;
  }
  if (what == "os_avx512") {
    return m.os_avx512;
  }
  if (what == "os_amx") {
    return m.os_amx;
  }
  if (what == "amx_permission") {
    return m.amx_permission;
  }
  return std::any_of(m.features.begin(), m.features.end(),
                     [&](const Feature &f) { return f.present && what == f.name; });
}

Variant best() {
  int index = num_variants - 1;
  while (index > 0 && !missing(static_cast<Variant>(index), machine()).empty()) {
    --index;
  }
  return static_cast<Variant>(index); // generic lacks nothing
}

std::atomic<int> forced{-1};

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
    }
    out += c;
  }
  return out + '"';
}

const char *boolean(bool value) { return value ? "true" : "false"; }

std::string report() {
  const Machine &m = machine();
  std::string out = "{\"vendor\": " + quoted(m.vendor) + ", \"brand\": " + quoted(m.brand) + ", \"features\": {";
  for (size_t i = 0; i < m.features.size(); ++i) {
    out += (i ? ", " : "") + quoted(m.features[i].name) + ": " + boolean(m.features[i].present);
  }
  out += "}, \"xcr0\": " + std::to_string(m.xcr0) + ", \"os_avx\": " + boolean(m.os_avx) +
         ", \"os_avx512\": " + boolean(m.os_avx512) + ", \"os_amx\": " + boolean(m.os_amx) +
         ", \"amx_permission\": " + boolean(m.amx_permission) + ", \"variants\": [";
  for (int i = num_variants - 1; i >= 0; --i) {
    const auto lacks = missing(static_cast<Variant>(i), m);
    out += "{\"name\": " + quoted(names[i]) + ", \"supported\": " + boolean(lacks.empty()) + ", \"missing\": [";
    for (size_t j = 0; j < lacks.size(); ++j) {
      out += (j ? ", " : "") + quoted(lacks[j]);
    }
    out += i ? "]}, " : "]}";
  }
  return out + "]}";
}

} // namespace

const char *name(Variant variant) { return names[static_cast<int>(variant)]; }

std::vector<std::string> missing(Variant variant, const Machine &m) {
  std::vector<std::string> out;
  for (const Requirement &r : requirements) {
    if (static_cast<int>(r.from) <= static_cast<int>(variant) && !has(m, r.name)) {
      out.emplace_back(r.name);
    }
  }
  return out;
}

Variant active() {
  static const Variant chosen = best();
  const int index = forced.load(std::memory_order_relaxed);
  return index < 0 ? chosen : static_cast<Variant>(index);
}

std::string force(std::string_view wanted) {
  std::string valid, lacks;
  bool known = false;
  for (int i = num_variants - 1; i >= 0; --i) {
    const auto absent = missing(static_cast<Variant>(i), machine());
    if (absent.empty()) {
      valid += (valid.empty() ? "" : ", ") + std::string(names[i]);
    }
    if (wanted == names[i]) {
      if (absent.empty()) {
        forced.store(i, std::memory_order_relaxed);
        return {};
      }
      known = true;
      for (const auto &what : absent) {
        lacks += (lacks.empty() ? "" : ", ") + what;
      }
    }
  }
  const std::string subject = "instruction-set variant \"" + std::string(wanted) + "\"";
  return (known ? subject + " cannot run here: this machine lacks " + lacks : subject + " is not known") +
         "; expected one of " + valid;
}

} // namespace corebound::isa

// JSON text that lives as long as the library: processor, operating system support, and all variants, best first.
COREBOUND_API const char *corebound_isa_report(void) {
  static const std::string text = corebound::isa::report();
  return text.c_str();
}

// Name of the active variant.
COREBOUND_API const char *corebound_isa_active(void) { return corebound::isa::name(corebound::isa::active()); }

// Makes `name` the active variant and returns 0. Returns -1 if it cannot run, with the reason in `error`
// (`error_bytes` long, always terminated; may be null with 0).
COREBOUND_API int corebound_isa_force(const char *name, char *error, size_t error_bytes) {
  const std::string problem = corebound::isa::force(name ? name : "");
  if (error && error_bytes > 0) {
    std::snprintf(error, error_bytes, "%s", problem.c_str());
  }
  return problem.empty() ? 0 : -1;
}
