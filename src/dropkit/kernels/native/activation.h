// Activations and their derivatives, free of branches so that compilers vectorise loops over them.
#pragma once

#include <cmath>

#include "scalar.h"

namespace dropkit {
namespace {

// e to the power x, to 2 units in the last place; x is cut off where the result would be no normal number.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2**23: rounds to an integer, which its low bits hold
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const float p = 1 + r * (1 + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
  return p * bits_to_float((float_to_bits(shifted) << 23) + 0x3F800000);
}
inline double exponential(double x) { return std::exp(x); }

// The normal distribution function and its density. In float32 by Abramowitz and Stegun (1964), 7.1.26.
inline void normal(float z, float& probability, float& density) {
  const float a = z < 0 ? -z : z;
  const float t = 1 / (1 + 0.3275911f * 0.70710678f * a);
  const float e = exponential(-0.5f * a * a);
  const float tail = 0.5f * e * t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  probability = z < 0 ? tail : 1 - tail;
  density = 0.398942280f * e;
}
inline void normal(double z, double& probability, double& density) {
  probability = 0.5 * std::erfc(-z * 0.70710678118654752440);
  density = 0.39894228040143267794 * std::exp(-0.5 * z * z);
}

struct Relu {
  template <class F>
  static F value(F z) { return z < 0 ? F(0) : z; }  // NaN stays
  template <class F>
  static F derivative(F z) { return z <= 0 ? F(0) : F(1); }
};

struct Gelu {
  template <class F>
  static F value(F z) {
    F probability, density;
    normal(z, probability, density);
    return z * probability;
  }
  template <class F>
  static F derivative(F z) {
    F probability, density;
    normal(z, probability, density);
    return probability + z * density;
  }
};

// GELU by the hyperbolic tangent: z * s(2u), with s the logistic function and u = sqrt(2/pi) (z + 0.044715 z**3).
struct GeluTanh {
  static constexpr double kRoot = 0.79788456080286535588, kCubic = 0.044715;
  template <class F>
  static F logistic(F z) { return 1 / (1 + exponential(-2 * F(kRoot) * (z + F(kCubic) * z * z * z))); }
  template <class F>
  static F value(F z) { return z * logistic(z); }
  template <class F>
  static F derivative(F z) {
    const F s = logistic(z);
    return s + z * s * (1 - s) * 2 * F(kRoot) * (1 + 3 * F(kCubic) * z * z);
  }
};

struct Silu {
  template <class F>
  static F value(F z) { return z / (1 + exponential(-z)); }
  template <class F>
  static F derivative(F z) {
    const F s = 1 / (1 + exponential(-z));
    return s * (1 + z * (1 - s));
  }
};

}  // namespace
}  // namespace dropkit
