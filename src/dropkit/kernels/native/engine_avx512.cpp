#include "avx512.h"
#include "engine.h"
#include "fields.h"

namespace dropkit {
extern const Table kAvx512 = table<avx512::Isa>("avx512", [] {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2");
}, fields<avx512::Isa>());
}
