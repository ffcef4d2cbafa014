// Vectors by the compilers' own extension: operators work on all lanes, and become instructions of the set at hand.
#pragma once

#include <type_traits>

#include "philox.h"

namespace dropkit {
namespace {

template <class F, int kBytes>
struct MakeVector {
  typedef F type __attribute__((vector_size(kBytes)));
};
template <class F, int kBytes>
using VectorOf = typename MakeVector<F, kBytes>::type;

template <class V>
using lane_t = std::decay_t<decltype(V{}[0])>;
template <class V>
using integers_t = VectorOf<std::conditional_t<sizeof(lane_t<V>) == sizeof(u32), u32, u64>, sizeof(V)>;
template <class V>
constexpr int kLanes = sizeof(V) / sizeof(lane_t<V>);

template <class V>
inline V all(lane_t<V> value) {
  return V{} + value;
}

// NaN stays.
template <class V>
inline V at_least(V value, lane_t<V> least) {
  return value < least ? all<V>(least) : value;
}
template <class V>
inline V at_most(V value, lane_t<V> most) {
  return value > most ? all<V>(most) : value;
}

template <class V>
inline V absolute(V value) {
  using I = integers_t<V>;
  return (V)((I)value & (~I{} >> 1));
}

}  // namespace
}  // namespace dropkit
