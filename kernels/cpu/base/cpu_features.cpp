#include "base/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace edgellama {
namespace {

#if defined(__x86_64__)

struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Cpuid(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

bool bit(unsigned value, int position) { return (value >> position) & 1u; }

unsigned long long enabled_state() {
  if (!bit(Cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE
  unsigned lo, hi;
  asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<unsigned long long>(hi) << 32) | lo;
}

bool has_avx2() {
  const Cpuid one(1, 0), seven(7, 0);
  return (enabled_state() & 0x6) == 0x6 && bit(one.ecx, 12) && bit(one.ecx, 29) && bit(seven.ebx, 5);
}

bool has_avxvnni() { return has_avx2() && bit(Cpuid(7, 1).eax, 4); }

bool has_avx512() {
  const Cpuid seven(7, 0), seven1(7, 1);
  return has_avx2() && (enabled_state() & 0xe6) == 0xe6 && bit(seven.ebx, 16) && bit(seven.ebx, 17) &&
         bit(seven.ebx, 30) && bit(seven.ebx, 31) && bit(seven.ecx, 11) && bit(seven1.eax, 5);
}

bool has_amx() {
  const Cpuid seven(7, 0);
  if (!has_avx512() || (enabled_state() & 0x60000) != 0x60000) return false;
  if (!bit(seven.edx, 22) || !bit(seven.edx, 23) || !bit(seven.edx, 24) || !bit(seven.edx, 25)) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2): ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

bool supported(Isa isa) {
  switch (isa) {
    case Isa::portable:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return has_avx2();
    case Isa::avxvnni:
      return has_avxvnni();
    case Isa::avx512:
      return has_avx512();
    case Isa::amx:
      return has_amx();
#endif
#if defined(__aarch64__) && defined(__linux__)
    case Isa::neon: {
      constexpr unsigned long need = HWCAP_ASIMDDP | HWCAP_ASIMDHP | HWCAP_FPHP;
      return (getauxval(AT_HWCAP) & need) == need;
    }
#elif defined(__aarch64__)
    case Isa::neon:
      return true;  // every Arm Mac
#endif
    default:
      return false;
  }
}

struct Supported {
  bool isa[kIsaCount];
  Supported() {
    for (int i = 0; i < kIsaCount; ++i) isa[i] = supported(static_cast<Isa>(i));
  }
};

}  // namespace

const char* isa_name(Isa isa) {
  static const char* const names[kIsaCount] = {"portable", "neon", "avx2", "avxvnni", "avx512", "amx"};
  return names[static_cast<int>(isa)];
}

bool isa_available(Isa isa) {
  static const Supported once;
  const int i = static_cast<int>(isa);
  return i >= 0 && i < kIsaCount && once.isa[i];
}

}  // namespace edgellama
