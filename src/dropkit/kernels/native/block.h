// Numbers in memory as vectors of what they are computed in.
#pragma once

#include <cstring>
#include <type_traits>

#include "scalar.h"

namespace dropkit {
namespace {

// As many numbers in memory as fill a vector of the computing type, or two: the even and the odd ones of bfloat16, each
// the high half of a float32.
template <class Isa, class T>
struct Block {
  using V = std::conditional_t<std::is_same_v<T, double>, typename Isa::Doubles, typename Isa::Floats>;
  using I = integers_t<V>;
  static constexpr bool kIsPaired = std::is_same_v<T, BFloat16>;
  static constexpr int kParts = kIsPaired ? 2 : 1, kCount = kParts * kLanes<V>;
  V part[kParts];

  void load(const T* from) {
    if constexpr (kIsPaired) {
      I bits;
      std::memcpy(&bits, from, sizeof bits);
      part[0] = (V)(bits << 16);
      part[1] = (V)(bits & 0xFFFF0000);
    } else if constexpr (std::is_same_v<T, Float16>) {
      part[0] = Isa::widen(from);
    } else {
      std::memcpy(part, from, sizeof part);
    }
  }
  void store(T* to) const {
    if constexpr (kIsPaired) {
      const I bits = rounded(part[0]) >> 16 | (rounded(part[1]) & 0xFFFF0000);
      std::memcpy(to, &bits, sizeof bits);
    } else if constexpr (std::is_same_v<T, Float16>) {
      Isa::narrow(part[0], to);
    } else {
      std::memcpy(to, part, sizeof part);
    }
  }
  static I rounded(V value) {
    const I bits = (I)value;
    return bits + 0x7FFF + (bits >> 16 & 1);
  }
  // Which numbers of a part have their bit set.
  static auto chosen(u64 keep, int part) {
    I place;
    for (int i = 0; i < kLanes<V>; ++i) place[i] = lane_t<I>{1} << (i * kParts);
    return ((I{} + static_cast<lane_t<I>>(keep >> part)) & place) != 0;
  }
};

// What is not chosen becomes +0.
template <class V, class Chosen>
inline V kept(V values, Chosen chosen) {
  return chosen ? values : V{};
}

}  // namespace
}  // namespace dropkit
