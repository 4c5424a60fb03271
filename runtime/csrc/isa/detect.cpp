// Reads CPUID, XCR0 and the AMX permission.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "isa/isa.h"

namespace corebound::isa {
namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// __get_cpuid_count checks the highest leaf first, so an old processor yields zeros and not a neighbour's bits.
Registers leaf(unsigned number, unsigned subleaf = 0) {
  Registers r;
  if (!__get_cpuid_count(number, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) {
    return {};
  }
  return r;
}

bool bit(unsigned value, int index) { return (value >> index) & 1U; }

uint64_t read_xcr0(const Registers &leaf1) {
  if (!bit(leaf1.ecx, 27)) { // OSXSAVE: without it XGETBV is an illegal instruction
    return 0;
  }
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool request_amx_permission() {
  constexpr long arch_req_xcomp_perm = 0x1023;
  constexpr long tile_data = 18;
  return syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0;
}

std::string vendor_string() {
  Registers r = leaf(0);
  char text[13] = {};
  std::memcpy(text, &r.ebx, 4);
  std::memcpy(text + 4, &r.edx, 4);
  std::memcpy(text + 8, &r.ecx, 4);
  return text;
}

std::string brand_string() {
  char text[49] = {};
  for (unsigned part = 0; part < 3; ++part) {
    Registers r = leaf(0x80000002U + part);
    std::memcpy(text + 16 * part, &r, 16);
  }
  std::string brand = text;
  brand.erase(0, brand.find_first_not_of(' '));
  brand.erase(brand.find_last_not_of(' ') + 1);
  return brand;
}

Machine look() {
  const Registers l1 = leaf(1), l7 = leaf(7), l7_1 = l7.eax >= 1 ? leaf(7, 1) : Registers{};
  Machine m;
  m.vendor = vendor_string();
  m.brand = brand_string();
  m.features = {{{"avx2", bit(l7.ebx, 5)},
                 {"fma", bit(l1.ecx, 12)},
                 {"f16c", bit(l1.ecx, 29)},
                 {"avx512f", bit(l7.ebx, 16)},
                 {"avx512bw", bit(l7.ebx, 30)},
                 {"avx512vl", bit(l7.ebx, 31)},
                 {"avx512dq", bit(l7.ebx, 17)},
                 {"avx512_bf16", bit(l7_1.eax, 5)},
                 {"avx512_vnni", bit(l7.ecx, 11)},
                 {"avx512_fp16", bit(l7.edx, 23)},
                 {"avx_vnni", bit(l7_1.eax, 4)},
                 {"amx_tile", bit(l7.edx, 24)},
                 {"amx_bf16", bit(l7.edx, 22)},
                 {"amx_int8", bit(l7.edx, 25)}}};
  constexpr uint64_t avx_state = 0x6, avx512_state = 0xe0 | avx_state, amx_state = 0x60000;
  m.xcr0 = read_xcr0(l1);
  m.os_avx = (m.xcr0 & avx_state) == avx_state;
  m.os_avx512 = (m.xcr0 & avx512_state) == avx512_state;
  m.os_amx = (m.xcr0 & amx_state) == amx_state;
  m.amx_permission = m.os_amx && bit(l7.edx, 24) && request_amx_permission();
  return m;
}

} // namespace

const Machine &machine() {
  static const Machine found = look();
  return found;
}

} // namespace corebound::isa
