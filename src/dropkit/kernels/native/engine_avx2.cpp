#include "avx2.h"
#include "engine.h"
#include "fields.h"

namespace dropkit {
extern const Table kAvx2 = table<avx2::Isa>("avx2", [] {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("fma");
}, fields<avx2::Isa>());
}
