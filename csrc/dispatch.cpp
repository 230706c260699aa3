// Detection of the processor, the tables of kernels, then the choice among them.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastopt {

#if defined(__x86_64__)
namespace baseline {
Kernels kernels();
}
namespace avx2 {
Kernels kernels();
}
namespace avx512 {
Kernels kernels();
}
#elif defined(__aarch64__)
namespace neon {
Kernels kernels();
}
#endif

namespace {

struct Isa {
  std::string name;
  bool supported;
  Kernels (*fill)();
  Kernels table = supported ? fill() : Kernels{};
};

// Best first; the tables live as long as the process, for a step on another thread may use one.
// __builtin_cpu_supports also asks whether the operating system saves the registers.
const std::vector<Isa>& compiled() {
  static const std::vector<Isa> isas = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("f16c");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return std::vector<Isa>{{"avx512", has_avx512, avx512::kernels},
                            {"avx2", has_avx2, avx2::kernels},
                            {"baseline", true, baseline::kernels}};
#elif defined(__aarch64__)
    return std::vector<Isa>{{"neon", true, neon::kernels}};
#endif
  }();
  return isas;
}

const Kernels* find(const std::string& name) {
  for (const Isa& isa : compiled()) {
    if (isa.supported && (name.empty() || name == isa.name)) return &isa.table;
  }
  std::string allowed;
  for (const std::string& isa : supported_isas()) allowed += (allowed.empty() ? "" : ", ") + isa;
  throw std::invalid_argument("FASTOPT_ISA is '" + name + "'; this processor can run: " + allowed +
                              ". Unset it to use the best of them.");
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> kernels = [] {
    const char* forced = std::getenv("FASTOPT_ISA");
    return find(forced ? forced : "");
  }();
  return kernels;
}

}  // namespace

const std::vector<std::string>& supported_isas() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> supported;
    for (const Isa& isa : compiled()) {
      if (isa.supported) supported.push_back(isa.name);
    }
    return supported;
  }();
  return names;
}

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

void select_isa(const std::string& name) { current() = find(name); }

}  // namespace fastopt
