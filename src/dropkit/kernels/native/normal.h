// Uniforms and normals of 32-bit draws.
//
// A normal is computed by additions, multiplications and square roots alone, which every processor rounds alike: so its
// bits are the same for all instruction sets. Nothing branches, so that compilers vectorise the loops.
#pragma once

#include <cmath>
#include <cstring>

#include "scalar.h"

namespace dropkit {
namespace {

// What a type of numbers is made of: an integer of its length, and the bits of 1, of 2 to the number of its fraction's bits
// and of the square root of a half.
//
// Minimax polynomials, coefficients in rising order: of -2 ln(1 + x) / x for 1 + x within a factor of the square root of two
// of 1, and of sin(2 pi x) / x as one of x**2, for x up to a quarter. Normals are off by 1.7e-6 and 1e-14 at most.
template <class F>
struct Number;

template <>
struct Number<float> {
  using Bits = u32;
  static constexpr int kFraction = 23;
  static constexpr Bits kOne = 0x3F800000, kCount = 0x4B000000, kRootOfHalf = 0x3F3504F3;
  static constexpr float kHalfStep = 0x1p-24f;
  static constexpr float kLogarithm[] = {-2.00000195f, 1.00002226f, -0.666290179f, 0.498194884f, -0.409926579f, 0.373357093f, -0.237922155f};
  static constexpr float kSine[] = {6.28318527f, -41.3416775f, 81.6022312f, -76.5749922f, 39.7109182f};

  static Bits fraction(u32 draw) { return draw >> 9; }
  static float of(Bits bits) { return bits_to_float(bits); }
  static Bits bits(float value) { return float_to_bits(value); }
};

template <>
struct Number<double> {
  using Bits = u64;
  static constexpr int kFraction = 52;
  static constexpr Bits kOne = 0x3FF0000000000000, kCount = 0x4330000000000000, kRootOfHalf = 0x3FE6A09E667F3BCD;
  static constexpr double kHalfStep = 0x1p-33;
  static constexpr double kLogarithm[] = {
      -1.9999999999999922, 1.0000000000009919, -0.66666666667669366, 0.49999999961622589, -0.39999999768768143, 0.33333337544296497,
      -0.28571449986681979, 0.24999802825438197, -0.22221227021180958, 0.20004412208994435, -0.18206896915147011, 0.16623961590036524,
      -0.15042348055872018, 0.14296351129309331, -0.15612094926139747, 0.15050691358258658, -0.07281616914435255};
  static constexpr double kSine[] = {
      6.2831853071795856, -41.341702240398021, 81.60524927551284, -76.705859683290856, 42.058689667355686, -15.094499474826675,
      3.8172886388959704, -0.69215692445602981};

  static Bits fraction(u32 draw) { return Bits{draw} << 20; }
  static double of(Bits bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  static Bits bits(double value) {
    Bits found;
    std::memcpy(&found, &value, sizeof found);
    return found;
  }
};

// A draw as a number between 0 and 1, exactly: of one between 1 and 2.
template <class F>
inline F uniform(u32 draw) {
  using N = Number<F>;
  return N::of(N::kOne | N::fraction(draw)) - (1 - N::kHalfStep);
}

template <class F, int n>
inline F polynomial(F x, const F (&coefficients)[n]) {
  F sum = coefficients[n - 1];
  for (int k = n - 2; k >= 0; --k) sum = sum * x + coefficients[k];
  return sum;
}

// -2 ln x for a number between 2**-64 and 1: ln(2**e m) = e ln 2 + ln m, with m within a factor of the square root of two
// of 1.
template <class F>
inline F squared_radius(F x) {
  using N = Number<F>;
  using Bits = typename N::Bits;
  constexpr Bits kMost = 64;  // keeps the exponent's count positive
  const Bits exponent = (N::bits(x) - N::kRootOfHalf + (kMost << N::kFraction)) >> N::kFraction;
  const F m = N::of(N::bits(x) - (exponent << N::kFraction) + (kMost << N::kFraction));
  const F e = N::of(N::kCount | exponent) - (N::of(N::kCount) + F(kMost));
  return e * F(-1.38629436111989061883) + (m - 1) * polynomial(m - 1, N::kLogarithm);
}

// The cosine of 2 pi x, 0 < x < 1: cos(2 pi x) = sin(2 pi (|x - 1/2| - 1/4)), whose argument is exact.
template <class F>
inline F cosine_of_turns(F x) {
  const F turns = std::fabs(x - F(0.5)) - F(0.25);
  return turns * polynomial(turns * turns, Number<F>::kSine);
}

// Box and Muller (1958), by the cosine alone.
template <class F>
inline F normal(u32 draw, u32 second_draw) {
  return std::sqrt(squared_radius(uniform<F>(draw))) * cosine_of_turns(uniform<F>(second_draw));
}

}  // namespace
}  // namespace dropkit
