// NEON, which every 64-bit ARM processor has: four blocks, thirty-two elements, to four vectors of words.
#pragma once

#include <arm_neon.h>

#include "scalar.h"

namespace dropkit {
namespace {
namespace neon {

struct Isa : scalar::Isa {
  static constexpr int kBlocks = 4;
  static constexpr int kGroupsAtOnce = 1;
  using Vector = uint32x4_t;

  static Vector load(const u32* values) { return vld1q_u32(values); }
  static Vector broadcast(u32 value) { return vdupq_n_u32(value); }
  static Vector add(Vector a, u32 b) { return vaddq_u32(a, broadcast(b)); }
  static Vector xor2(Vector a, Vector b) { return veorq_u32(a, b); }
  static Vector xor3(Vector a, Vector b, Vector c) { return xor2(xor2(a, b), c); }
  static void multiply(Vector a, u32 b, Vector& high, Vector& low) {
    const Vector factor = vdupq_n_u32(b);
    const Vector front = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(factor)));
    const Vector back = vreinterpretq_u32_u64(vmull_high_u32(a, factor));
    low = vuzp1q_u32(front, back);
    high = vuzp2q_u32(front, back);
  }

  static uint16x8_t no_ties() { return vdupq_n_u16(0); }
  static bool any(uint16x8_t ties) { return vmaxvq_u16(ties) != 0; }
  template <bool kTies>
  static u64 reach(const Vector* words, u16 threshold, uint16x8_t& ties) {
    const uint16x8_t limit = vdupq_n_u16(threshold);
    uint16x8_t reaches[4];
    for (int w = 0; w < 4; ++w) {
      const uint16x8_t halves = vreinterpretq_u16_u32(words[w]);
      reaches[w] = vcgeq_u16(halves, limit);
      if constexpr (kTies) ties = vorrq_u16(ties, vceqq_u16(halves, limit));
    }
    return packed(reaches);
  }
  static u64 equal(const Vector* words, u16 threshold) {
    uint16x8_t equals[4];
    for (int w = 0; w < 4; ++w) equals[w] = vceqq_u16(vreinterpretq_u16_u32(words[w]), vdupq_n_u16(threshold));
    return packed(equals);
  }

  static void merge(const Vector* high, const Vector* low, u32* draws) {
    uint64x2x4_t front, back;  // two draws to each block
    for (int word = 0; word < 4; ++word) {
      const uint32x4_t even = vsliq_n_u32(low[word], high[word], 16), odd = vsriq_n_u32(high[word], low[word], 16);
      front.val[word] = vreinterpretq_u64_u32(vzip1q_u32(even, odd));
      back.val[word] = vreinterpretq_u64_u32(vzip2q_u32(even, odd));
    }
    vst4q_u64(reinterpret_cast<uint64_t*>(draws), front);
    vst4q_u64(reinterpret_cast<uint64_t*>(draws) + 8, back);
  }

  // The halves of a block lie side by side in four vectors: each is given its own bit of a byte, and the bits are added.
  static u64 packed(const uint16x8_t* found) {
    static constexpr u16 kPlaces[8] = {1, 2, 1, 2, 1, 2, 1, 2};
    const uint16x8_t place = vld1q_u16(kPlaces);
    uint16x8_t bits = vandq_u16(found[0], place);
    bits = vbslq_u16(vshlq_n_u16(place, 2), found[1], bits);
    bits = vbslq_u16(vshlq_n_u16(place, 4), found[2], bits);
    bits = vbslq_u16(vshlq_n_u16(place, 6), found[3], bits);
    const uint16x4_t blocks = vmovn_u32(vpaddlq_u16(bits));
    return vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(blocks, blocks))), 0);
  }

  static void spread64(u64 keep, unsigned char* output) {
    static constexpr unsigned char kPlaces[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t place = vld1q_u8(kPlaces);
    for (int i = 0; i < 64; i += 16) {
      const uint8x8_t front = vdup_n_u8(static_cast<unsigned char>(keep >> i));
      const uint8x8_t back = vdup_n_u8(static_cast<unsigned char>(keep >> (i + 8)));
      vst1q_u8(output + i, vshrq_n_u8(vtstq_u8(vcombine_u8(front, back), place), 7));
    }
  }

  static uint32x4_t spread4(u64 keep) {
    static constexpr u32 kPlaces[4] = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32(static_cast<u32>(keep)), vld1q_u32(kPlaces));
  }
  static uint16x8_t spread8(u64 keep) {
    static constexpr u16 kPlaces[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return vtstq_u16(vdupq_n_u16(static_cast<u16>(keep)), vld1q_u16(kPlaces));
  }
  static uint64x2_t spread2(u64 keep) {
    static constexpr u64 kPlaces[2] = {1, 2};
    return vtstq_u64(vdupq_n_u64(keep), vld1q_u64(kPlaces));
  }

  template <class T>
  static void scale64(const T* input, T* output, u64 keep, compute_t<T> scale) {
    if constexpr (sizeof(T) == 8) {
      for (int i = 0; i < 64; i += 2) {
        const uint64x2_t product = vreinterpretq_u64_f64(vmulq_n_f64(vld1q_f64(input + i), scale));
        vst1q_f64(output + i, vreinterpretq_f64_u64(vandq_u64(product, spread2(keep >> i))));
      }
    } else if constexpr (sizeof(T) == 4) {
      for (int i = 0; i < 64; i += 4) {
        const uint32x4_t product = vreinterpretq_u32_f32(vmulq_n_f32(vld1q_f32(input + i), scale));
        vst1q_f32(output + i, vreinterpretq_f32_u32(vandq_u32(product, spread4(keep >> i))));
      }
    } else {
      for (int i = 0; i < 64; i += 8) {
        const uint16x8_t found = vld1q_u16(&input[i].bits);
        vst1q_u16(&output[i].bits, vandq_u16(product(T{}, found, scale), spread8(keep >> i)));
      }
    }
  }

  static uint16x8_t product(Float16, uint16x8_t value, float scale) {
    const float16x8_t found = vreinterpretq_f16_u16(value);
    const float32x4_t front = vmulq_n_f32(vcvt_f32_f16(vget_low_f16(found)), scale);
    const float32x4_t back = vmulq_n_f32(vcvt_high_f32_f16(found), scale);
    return vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(front), back));
  }

  // Even and odd elements apart, each in the high half of a float32.
  static uint16x8_t product(BFloat16, uint16x8_t value, float scale) {
    const uint32x4_t found = vreinterpretq_u32_u16(value);
    const uint32x4_t even = rounded(vshlq_n_u32(found, 16), scale);
    const uint32x4_t odd = rounded(vandq_u32(found, vdupq_n_u32(0xFFFF0000)), scale);
    return vreinterpretq_u16_u32(vsriq_n_u32(odd, even, 16));
  }

  static uint32x4_t rounded(uint32x4_t value, float scale) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vmulq_n_f32(vreinterpretq_f32_u32(value), scale));
    const uint32x4_t even = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), even);
  }

  using Floats = VectorOf<float, 16>;
  using Doubles = VectorOf<double, 16>;

  static Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return vfmaq_f64(c, a, b); }
  static Floats widen(const Float16* values) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&values->bits))); }
  static void narrow(Floats values, Float16* to) { vst1_u16(&to->bits, vreinterpret_u16_f16(vcvt_f16_f32(values))); }
};

}  // namespace neon
}  // namespace
}  // namespace dropkit
