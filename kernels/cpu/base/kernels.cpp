#include "base/kernels.h"

#include <atomic>

#include "base/abi.h"

namespace edgellama {
namespace {

std::atomic<int> last_isa{kIsaCount - 1};

}  // namespace

namespace portable { const Kernels& variant(); }
namespace neon { const Kernels& variant(); }
namespace avx2 { const Kernels& variant(); }
namespace avxvnni { const Kernels& variant(); }
namespace avx512 { const Kernels& variant(); }
namespace amx { const Kernels& variant(); }

const Kernels* kernels(Isa isa) {
  if (!isa_available(isa)) return nullptr;
  switch (isa) {
    case Isa::portable:
      return &portable::variant();
#if defined(EDGELLAMA_HAVE_neon)
    case Isa::neon:
      return &neon::variant();
#endif
#if defined(EDGELLAMA_HAVE_avx2)
    case Isa::avx2:
      return &avx2::variant();
#endif
#if defined(EDGELLAMA_HAVE_avxvnni)
    case Isa::avxvnni:
      return &avxvnni::variant();
#endif
#if defined(EDGELLAMA_HAVE_avx512)
    case Isa::avx512:
      return &avx512::variant();
#endif
#if defined(EDGELLAMA_HAVE_amx)
    case Isa::amx:
      return &amx::variant();
#endif
    default:
      return nullptr;
  }
}

Isa best_isa() {
  for (int i = last_isa.load(std::memory_order_relaxed); i > 0; --i)
    if (kernels(static_cast<Isa>(i))) return static_cast<Isa>(i);
  return Isa::portable;
}

void limit_isa(Isa last) { last_isa.store(static_cast<int>(last), std::memory_order_relaxed); }

}  // namespace edgellama

using edgellama::Isa;

// The C interface. `isa` is a number of enum class Isa.
EDGELLAMA_API int edgellama_isa_available(int isa) { return edgellama::kernels(static_cast<Isa>(isa)) != nullptr; }
EDGELLAMA_API int edgellama_abi() { return edgellama::kAbi; }
EDGELLAMA_API int edgellama_best_isa() { return static_cast<int>(edgellama::best_isa()); }

// Returns 0, or -2 if there is no variant of this number.
EDGELLAMA_API int edgellama_limit_isa(int isa) {
  if (isa < 0 || isa >= edgellama::kIsaCount) return -2;
  edgellama::limit_isa(static_cast<Isa>(isa));
  return 0;
}
