// Plain C++: one block at a time. It states what every other instruction set must give, bit for bit.
#pragma once

#include <cmath>
#include <cstring>

#include "philox.h"
#include "vector.h"

namespace dropkit {
namespace {

struct Float16 {
  u16 bits;
};
struct BFloat16 {
  u16 bits;
};

inline float to_float(float value) { return value; }
inline double to_float(double value) { return value; }

inline float bits_to_float(u32 bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline u32 float_to_bits(float value) {
  u32 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(BFloat16 value) { return bits_to_float(u32{value.bits} << 16); }

inline float to_float(Float16 value) {
  const u32 sign = u32{value.bits & 0x8000u} << 16, rest = value.bits & 0x7FFF;
  if (rest >= 0x7C00) return bits_to_float(sign | 0x7F800000 | (rest & 0x3FF) << 13);  // infinity or NaN
  // A subnormal by way of a number above one half, for as a float of that exponent it might count as 0.
  const float found = rest < 0x400 ? bits_to_float(0x3F000000 | rest) - 0.5f : bits_to_float(rest << 13) * 0x1p112f;
  return bits_to_float(sign | float_to_bits(found));
}

template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}

// Round to nearest, ties to even. A NaN that comes from a bfloat16 stays one without a test.
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const u32 bits = float_to_bits(value);
  return {static_cast<u16>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

template <>
inline Float16 from_float<Float16>(float value) {
  const u32 bits = float_to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
  // To a subnormal, adding one half aligns the mantissa and rounds it.
  const u32 subnormal = float_to_bits(bits_to_float(rest) + 0.5f) - 0x3F000000;
  const u32 normal = (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13;
  u32 found = rest < 0x38800000 ? subnormal : normal;
  found = rest >= 0x477FF000 ? 0x7C00 : found;  // rounds to 65,536 or more
  found = rest > 0x7F800000 ? 0x7E00 | (rest >> 13 & 0x3FF) : found;
  return {static_cast<u16>(sign | found)};
}

template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

template <class T>
inline T from_compute(compute_t<T> value) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return value;
  } else {
    return from_float<T>(value);
  }
}

// Multiply what is kept, in float32 or wider, and round once; what is dropped, NaN too, becomes +0.
template <class T>
inline T scaled(T value, bool keep, compute_t<T> scale) {
  if (!keep) return T{};
  return from_compute<T>(to_float(value) * scale);
}

namespace scalar {

// A vector of one block.
struct Isa {
  static constexpr int kBlocks = 1;
  static constexpr int kGroupsAtOnce = 1;  // groups of eight blocks in flight, as many as registers allow
  using Vector = u32;

  static Vector load(const u32* values) { return *values; }
  static Vector broadcast(u32 value) { return value; }
  static Vector add(Vector a, u32 b) { return a + b; }
  static Vector xor2(Vector a, Vector b) { return a ^ b; }
  static Vector xor3(Vector a, Vector b, Vector c) { return a ^ b ^ c; }
  static void multiply(Vector a, u32 b, Vector& high, Vector& low) {
    const u64 product = u64{a} * b;
    high = static_cast<u32>(product >> 32);
    low = static_cast<u32>(product);
  }

  // Which of the halves of four words a block reach a threshold, a bit an element, in order; if asked, `ties` becomes
  // what `any` is true of where one equals it.
  static u64 no_ties() { return 0; }
  static bool any(u64 ties) { return ties != 0; }
  template <bool kTies>
  static u64 reach(const Vector* words, u16 threshold, u64& ties) {
    u64 found = 0;
    for (int lane = 0; lane < 8; ++lane) found |= u64{half(words, lane) >= threshold} << lane;
    if constexpr (kTies) ties |= equal(words, threshold);
    return found;
  }
  // Which of them equal it.
  static u64 equal(const Vector* words, u16 threshold) {
    u64 found = 0;
    for (int lane = 0; lane < 8; ++lane) found |= u64{half(words, lane) == threshold} << lane;
    return found;
  }
  static u32 half(const Vector* words, int lane) { return words[lane >> 1] >> (16 * (lane & 1)) & 0xFFFF; }

  // The draws of the vector's elements in order, from the words of their high and of their low halves.
  static void merge(const Vector* high, const Vector* low, u32* draws) {
    for (int word = 0; word < 4; ++word) {
      draws[2 * word] = high[word] << 16 | (low[word] & 0xFFFF);
      draws[2 * word + 1] = (high[word] & 0xFFFF0000) | low[word] >> 16;
    }
  }

  template <class T>
  static void scale64(const T* input, T* output, u64 keep, compute_t<T> scale) {
    for (int i = 0; i < 64; ++i) output[i] = scaled(input[i], keep >> i & 1, scale);
  }

  static void spread64(u64 keep, unsigned char* output) {
    for (int i = 0; i < 64; ++i) output[i] = keep >> i & 1;
  }

  // Close up the bits of `bits` that `chosen` marks; each byte of `chosen` is one run of ones.
  static u64 extract(u64 bits, u64 chosen) {
    u64 found = 0;
    for (int byte = 0, filled = 0; byte < 8; ++byte) {
      const u32 mask = chosen >> (8 * byte) & 0xFF;
      const int skipped = mask ? __builtin_ctz(mask) : 0;
      found |= ((bits >> (8 * byte) & mask) >> skipped) << filled;
      filled += __builtin_popcount(mask);
    }
    return found;
  }

  // What activations are computed in.
  using Floats = VectorOf<float, 16>;
  using Doubles = VectorOf<double, 16>;

  // a * b + c, rounded once.
  template <class V>
  static V multiply_add(V a, V b, V c) {
    for (int i = 0; i < kLanes<V>; ++i) c[i] = std::fma(a[i], b[i], c[i]);
    return c;
  }
  static Floats widen(const Float16* values) {
    Floats found{};
    for (int i = 0; i < kLanes<Floats>; ++i) found[i] = to_float(values[i]);
    return found;
  }
  static void narrow(Floats values, Float16* to) {
    for (int i = 0; i < kLanes<Floats>; ++i) to[i] = from_float<Float16>(values[i]);
  }
};

}  // namespace scalar
}  // namespace
}  // namespace dropkit
