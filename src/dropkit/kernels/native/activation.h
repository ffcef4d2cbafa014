// Activations and their derivatives, written once for the vectors of every instruction set.
#pragma once

#include "vector.h"

namespace dropkit {
namespace {

// Minimax polynomials and fractions, coefficients in rising order; their errors are relative.
template <class F>
struct Fit;

template <>
struct Fit<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr float kExponentRange = 87;
  static constexpr float kExponential[] = {1, 1, 0.4999999f, 0.1666642f, 0.041668225f, 0.008374824f, 0.0013836833f};  // 2e-9
  static constexpr float kFar = 12;
  static constexpr float kMillsAbove[] = {0.5f, 0.432356278f, 0.178863124f, 0.0391663038f, 0.0039001918f};  // 4e-9
  static constexpr float kMillsBelow[] = {1, 1.66259741f, 1.18428364f, 0.45793277f, 0.0981840736f, 0.009776153f};
};

template <>
struct Fit<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr double kExponentRange = 708;
  static constexpr double kExponential[] = {  // 3e-18
      1, 1, 0.5000000000000018, 0.1666666666666617, 0.04166666666649264, 0.00833333333355947, 0.0013888888951260317,
      0.00019841269432418349, 2.4801486481631263e-05, 2.7557622652163222e-06, 2.763230823211427e-07, 2.4994296472958336e-08};
  static constexpr double kFar = 37;
  static constexpr double kMillsAbove[] = {  // 5e-17
      0.5, 0.77354308036940267, 0.59211957363842834, 0.28795742054344544, 0.097082545970218753, 0.023434125360174571,
      0.0040493522906199146, 0.0004846438430349964, 3.6730361080747704e-5, 1.3624077497094033e-6};
  static constexpr double kMillsBelow[] = {
      1, 2.3449707215416616, 2.555255081529995, 1.7081895790458837, 0.77814762132880076, 0.25331592419996923,
      0.05994863354931461, 0.010242290294640683, 0.0012182370100936086, 9.2069361619891134e-5, 3.4150497870104813e-6};
};

template <class Isa, class V, int n>
inline V polynomial(V x, const lane_t<V> (&coefficients)[n]) {
  V found = all<V>(coefficients[n - 1]);
  for (int i = n - 2; i >= 0; --i) found = Isa::multiply_add(found, x, all<V>(coefficients[i]));
  return found;
}

// e to the power x, to 2 units in the last place, for x within the range of the exponent.
template <class Isa, class V>
inline V exponential(V x) {
  using F = lane_t<V>;
  using I = integers_t<V>;
  constexpr int kBits = Fit<F>::kMantissaBits;
  const V rounder = all<V>(F(3ll << (kBits - 1)));  // what is added to it becomes an integer, which its low bits hold
  const V shifted = Isa::multiply_add(x, all<V>(F(1.44269504088896340736)), rounder);
  const V n = shifted - rounder;
  constexpr F kLog2 = F(0.69314718055994530942), kRest = F(0.693147180559945309417232121458L - kLog2);
  const V r = Isa::multiply_add(n, all<V>(-kRest), Isa::multiply_add(n, all<V>(-kLog2), x));
  return (V)((I)polynomial<Isa>(r, Fit<F>::kExponential) + ((I)shifted << kBits));
}

// The functions below but ReLU are z times a gate, which is 0 far below. At infinity they are what PyTorch's formulas make
// of it, where 0 times infinity is NaN: at its lower end they are NaN, and their derivatives are at both.

// Make a derivative NaN at infinity.
template <class Isa, class V>
inline V undefined_at_infinity(V derivative, V z) {
  return Isa::multiply_add(z, V{}, derivative);
}

struct Relu {
  template <class Isa, class V>
  static V value(V z) { return at_least(z, 0); }
};

// z times the normal distribution function of z, whose tail is a fraction (Mills' ratio) times the density.
struct Gelu {
  // At a distance from 0 within `kFar`: the density times sqrt(2 pi), and Mills' ratio over it. Their product is the tail.
  template <class Isa, class V>
  struct Normal {
    using F = lane_t<V>;
    V distance, density, mills;

    explicit Normal(V z) : distance(absolute(z)) {
      density = exponential<Isa>(distance * distance * F(-0.5));
      mills = polynomial<Isa>(distance, Fit<F>::kMillsAbove) / polynomial<Isa>(distance, Fit<F>::kMillsBelow);
    }
    // A function that is `below` where z is negative and 1 - `below` elsewhere; far out, 0 and 1.
    V on_both_sides(V z, V below) const {
      below = distance > Fit<F>::kFar ? V{} : below;
      return z < 0 ? below : 1 - below;
    }
  };
  template <class Isa, class V>
  static V value(V z) {
    const Normal<Isa, V> normal(z);
    return z * normal.on_both_sides(z, normal.density * normal.mills);
  }
  template <class Isa, class V>
  static V derivative(V z) {
    const Normal<Isa, V> normal(z);
    const V factor = all<V>(lane_t<V>(-0.39894228040143267794));
    const V below = normal.density * Isa::multiply_add(normal.distance, factor, normal.mills);
    return undefined_at_infinity<Isa>(normal.on_both_sides(z, below), z);
  }
};

template <class Isa, class V>
inline V logistic(V z) {
  return 1 / (1 + exponential<Isa>(-z));
}

// GELU by the hyperbolic tangent: z times the logistic function of 2 sqrt(2 / pi) (z + 0.044715 z**3).
struct GeluTanh {
  static constexpr double kLinear = 1.59576912160573071176, kCubic = 0.044715 * kLinear;
  static constexpr int kFar = 10;  // beyond, it is z, or 0 but for less than 1e-36

  template <class Isa, class V>
  static V gate(V z) {
    using F = lane_t<V>;
    return logistic<Isa>(z * Isa::multiply_add(z * z, all<V>(F(kCubic)), all<V>(F(kLinear))));
  }
  template <class Isa, class V>
  static V value(V z) {
    return z * (z < -kFar ? V{} : gate<Isa>(at_most(z, kFar)));
  }
  template <class Isa, class V>
  static V derivative(V z) {
    using F = lane_t<V>;
    const V near = at_most(at_least(z, -kFar), kFar), s = gate<Isa>(near);
    const V slope = Isa::multiply_add(near * near, all<V>(F(3 * kCubic)), all<V>(F(kLinear)));
    return undefined_at_infinity<Isa>(Isa::multiply_add(near * slope * s, 1 - s, s), z);
  }
};

struct Silu {
  template <class Isa, class V>
  static V gate(V z) {
    constexpr auto kFar = Fit<lane_t<V>>::kExponentRange;
    return z < -kFar ? V{} : logistic<Isa>(at_most(z, kFar));
  }
  template <class Isa, class V>
  static V value(V z) {
    return z * gate<Isa>(z);
  }
  template <class Isa, class V>
  static V derivative(V z) {
    const V s = gate<Isa>(z);
    return Isa::multiply_add(z * s, 1 - s, s);
  }
};

}  // namespace
}  // namespace dropkit
