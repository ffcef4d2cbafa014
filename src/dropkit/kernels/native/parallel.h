// How work is divided among threads.
#pragma once

#include <atomic>
#include <cstdint>

namespace dropkit {
namespace {

using std::int64_t;

// PyTorch's own loop over its own threads, handed over as a pointer: a second pool would fight with it for the cores.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
std::atomic<ParallelFor> parallel_for{nullptr};

constexpr int64_t kGrain = 1 << 14;  // elements: fewer cost less than waking a thread

void for_each(int64_t units, int64_t elements, Body body, void* context) {
  const ParallelFor loop = parallel_for.load(std::memory_order_relaxed);
  if (loop == nullptr || units < 2 || units * elements <= kGrain) {
    body(0, units, context);
  } else {
    const int64_t grain = elements < kGrain ? kGrain / elements : 1;
    if (loop(0, units, grain, body, context) != 0) body(0, units, context);
  }
}

}  // namespace
}  // namespace dropkit
