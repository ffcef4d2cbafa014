// AVX-512 (F, BW, VL, DQ): eight blocks, sixty-four elements, to a vector.
#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace dropkit {
namespace {
namespace avx512 {

struct Isa : scalar::Isa {
  static constexpr int kBlocks = 8;
  static constexpr int kGroupsAtOnce = 4;
  // A word sits in the low half of each 64-bit lane; what is above it is of no meaning, for a product reads it not.
  // Blocks stand in the order 0 4 1 5 2 6 3 7, from which two unpacks give the order of the elements.
  using Vector = __m512i;

  static Vector load(const u32* values) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i found = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    return _mm512_cvtepu32_epi64(_mm256_permutevar8x32_epi32(found, order));
  }
  static Vector broadcast(u32 value) { return _mm512_set1_epi64(value); }
  static Vector add(Vector a, u32 b) { return _mm512_add_epi64(a, broadcast(b)); }
  static Vector xor2(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
  static Vector xor3(Vector a, Vector b, Vector c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static void multiply(Vector a, u32 b, Vector& high, Vector& low) {
    low = _mm512_mul_epu32(a, _mm512_set1_epi64(b));
    high = _mm512_srli_epi64(low, 32);
  }

  struct Halves {
    __m512i first, second;
  };
  static Halves halves(const Vector* words) {
    const __m512i front = _mm512_mask_shuffle_epi32(words[0], 0xAAAA, words[1], _MM_PERM_CCAA);
    const __m512i back = _mm512_mask_shuffle_epi32(words[2], 0xAAAA, words[3], _MM_PERM_CCAA);
    return {_mm512_unpacklo_epi64(front, back), _mm512_unpackhi_epi64(front, back)};
  }

  static __mmask32 no_ties() { return 0; }
  static bool any(__mmask32 ties) { return ties != 0; }
  template <bool kTies>
  static u64 reach(const Vector* words, u16 threshold, __mmask32& ties) {
    const Halves found = halves(words);
    const __m512i limit = _mm512_set1_epi16(static_cast<short>(threshold));
    if constexpr (kTies) {
      const __mmask32 first = _mm512_cmpeq_epu16_mask(found.first, limit), second = _mm512_cmpeq_epu16_mask(found.second, limit);
      ties = _kor_mask32(ties, _kor_mask32(first, second));
    }
    return u64{_mm512_cmpge_epu16_mask(found.first, limit)} | u64{_mm512_cmpge_epu16_mask(found.second, limit)} << 32;
  }
  static u64 equal(const Vector* words, u16 threshold) {
    const Halves found = halves(words);
    const __m512i limit = _mm512_set1_epi16(static_cast<short>(threshold));
    return u64{_mm512_cmpeq_epu16_mask(found.first, limit)} | u64{_mm512_cmpeq_epu16_mask(found.second, limit)} << 32;
  }

  static void merge(const Vector* high, const Vector* low, u32* draws) {
    const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    const __m512i front = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), back = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i pairs[4];  // two draws to each block
    for (int word = 0; word < 4; ++word) {
      pairs[word] = _mm512_shuffle_epi8(_mm512_mask_shuffle_epi32(low[word], 0xAAAA, high[word], _MM_PERM_CCAA), order);
    }
    const __m512i a = _mm512_unpacklo_epi64(pairs[0], pairs[1]), b = _mm512_unpacklo_epi64(pairs[2], pairs[3]);
    const __m512i c = _mm512_unpackhi_epi64(pairs[0], pairs[1]), d = _mm512_unpackhi_epi64(pairs[2], pairs[3]);
    _mm512_storeu_si512(draws, _mm512_permutex2var_epi64(a, front, b));
    _mm512_storeu_si512(draws + 16, _mm512_permutex2var_epi64(a, back, b));
    _mm512_storeu_si512(draws + 32, _mm512_permutex2var_epi64(c, front, d));
    _mm512_storeu_si512(draws + 48, _mm512_permutex2var_epi64(c, back, d));
  }

  static u64 extract(u64 bits, u64 chosen) { return _pext_u64(bits, chosen); }

  static void spread64(u64 keep, unsigned char* output) {
    _mm512_storeu_si512(output, _mm512_maskz_set1_epi8(keep, 1));
  }

  template <class T>
  static void scale64(const T* input, T* output, u64 keep, compute_t<T> scale) {
    if constexpr (sizeof(T) == 8) {
      for (int i = 0; i < 64; i += 8) {
        const __m512d found = _mm512_maskz_mul_pd(static_cast<__mmask8>(keep >> i), _mm512_loadu_pd(input + i), _mm512_set1_pd(scale));
        _mm512_storeu_pd(output + i, found);
      }
    } else if constexpr (sizeof(T) == 4) {
      for (int i = 0; i < 64; i += 16) {
        const __m512 found = _mm512_maskz_mul_ps(static_cast<__mmask16>(keep >> i), _mm512_loadu_ps(input + i), _mm512_set1_ps(scale));
        _mm512_storeu_ps(output + i, found);
      }
    } else {
      scale_halves(input, output, keep, scale);
    }
  }

  static void scale_halves(const Float16* input, Float16* output, u64 keep, float scale) {
    for (int i = 0; i < 64; i += 16) {
      const __m256i found = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input + i));
      const __m512 product = _mm512_mul_ps(_mm512_cvtph_ps(found), _mm512_set1_ps(scale));
      const __m256i rounded = _mm512_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + i), _mm256_maskz_mov_epi16(static_cast<__mmask16>(keep >> i), rounded));
    }
  }

  static void scale_halves(const BFloat16* input, BFloat16* output, u64 keep, float scale) {
    for (int i = 0; i < 64; i += 32) {  // even and odd elements apart, each in the high half of a float32
      const __m512i found = _mm512_loadu_si512(input + i);
      const __m512i even = rounded(_mm512_slli_epi32(found, 16), scale);
      const __m512i odd = rounded(_mm512_and_si512(found, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))), scale);
      const __m512i both = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(even, 16), odd);
      _mm512_storeu_si512(output + i, _mm512_maskz_mov_epi16(static_cast<__mmask32>(keep >> i), both));
    }
  }

  static __m512i rounded(__m512i value, float scale) {
    const __m512i bits = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(value), _mm512_set1_ps(scale)));
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), even);
  }

  using Floats = VectorOf<float, 64>;
  using Doubles = VectorOf<double, 64>;

  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
  static Floats widen(const Float16* values) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
  }
  static void narrow(Floats values, Float16* to) {
    const __m256i found = _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), found);
  }
};

}  // namespace avx512
}  // namespace
}  // namespace dropkit
