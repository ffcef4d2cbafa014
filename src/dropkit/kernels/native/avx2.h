// AVX2 (with BMI2, F16C and FMA): four blocks, thirty-two elements, to a vector.
#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace dropkit {
namespace {
namespace avx2 {

struct Isa : scalar::Isa {
  static constexpr int kBlocks = 4;
  static constexpr int kGroupsAtOnce = 2;
  // As for AVX-512; blocks stand in the order 0 2 1 3.
  using Vector = __m256i;

  static Vector load(const u32* values) {
    const __m128i found = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm256_cvtepu32_epi64(_mm_shuffle_epi32(found, _MM_SHUFFLE(3, 1, 2, 0)));
  }
  static Vector broadcast(u32 value) { return _mm256_set1_epi64x(value); }
  static Vector add(Vector a, u32 b) { return _mm256_add_epi64(a, broadcast(b)); }
  static Vector xor2(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
  static Vector xor3(Vector a, Vector b, Vector c) { return xor2(xor2(a, b), c); }
  static void multiply(Vector a, u32 b, Vector& high, Vector& low) {
    low = _mm256_mul_epu32(a, _mm256_set1_epi64x(b));
    high = _mm256_srli_epi64(low, 32);
  }

  struct Halves {
    __m256i first, second;
  };
  static Halves halves(const Vector* words) {
    const __m256i front = _mm256_blend_epi32(words[0], _mm256_slli_epi64(words[1], 32), 0xAA);
    const __m256i back = _mm256_blend_epi32(words[2], _mm256_slli_epi64(words[3], 32), 0xAA);
    return {_mm256_unpacklo_epi64(front, back), _mm256_unpackhi_epi64(front, back)};
  }

  static __m256i no_ties() { return _mm256_setzero_si256(); }
  static bool any(__m256i ties) { return !_mm256_testz_si256(ties, ties); }
  template <bool kTies>
  static u64 reach(const Vector* words, u16 threshold, __m256i& ties) {
    const Halves found = halves(words);
    const __m256i limit = _mm256_set1_epi16(static_cast<short>(threshold));
    if constexpr (kTies) {
      const __m256i first = _mm256_cmpeq_epi16(found.first, limit), second = _mm256_cmpeq_epi16(found.second, limit);
      ties = _mm256_or_si256(ties, _mm256_or_si256(first, second));
    }
    return packed(_mm256_cmpeq_epi16(_mm256_max_epu16(found.first, limit), found.first),
                  _mm256_cmpeq_epi16(_mm256_max_epu16(found.second, limit), found.second));
  }
  static u64 equal(const Vector* words, u16 threshold) {
    const Halves found = halves(words);
    const __m256i limit = _mm256_set1_epi16(static_cast<short>(threshold));
    return packed(_mm256_cmpeq_epi16(found.first, limit), _mm256_cmpeq_epi16(found.second, limit));
  }

  static void merge(const Vector* high, const Vector* low, u32* draws) {
    const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m256i pairs[4];  // two draws to each block
    for (int word = 0; word < 4; ++word) {
      pairs[word] = _mm256_shuffle_epi8(_mm256_blend_epi32(low[word], _mm256_slli_epi64(high[word], 32), 0xAA), order);
    }
    __m256i* to = reinterpret_cast<__m256i*>(draws);
    const __m256i a = _mm256_unpacklo_epi64(pairs[0], pairs[1]), b = _mm256_unpacklo_epi64(pairs[2], pairs[3]);
    const __m256i c = _mm256_unpackhi_epi64(pairs[0], pairs[1]), d = _mm256_unpackhi_epi64(pairs[2], pairs[3]);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(a, b, 0x31));
    _mm256_storeu_si256(to + 2, _mm256_permute2x128_si256(c, d, 0x20));
    _mm256_storeu_si256(to + 3, _mm256_permute2x128_si256(c, d, 0x31));
  }

  static u64 packed(__m256i first, __m256i second) {
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(first, second), _MM_SHUFFLE(3, 1, 2, 0));
    return static_cast<u32>(_mm256_movemask_epi8(bytes));
  }

  static u64 extract(u64 bits, u64 chosen) { return _pext_u64(bits, chosen); }

  static void spread64(u64 keep, unsigned char* output) {
    const __m256i source = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i place = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
    for (int i = 0; i < 64; i += 32) {
      const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(keep >> i)), source);
      const __m256i found = _mm256_min_epu8(_mm256_and_si256(bytes, place), _mm256_set1_epi8(1));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + i), found);
    }
  }

  static __m256i spread32(u64 keep) {
    const __m256i place = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(keep)), place), place);
  }
  static __m256i spread64(u64 keep) {
    const __m256i place = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(static_cast<long long>(keep)), place), place);
  }
  static __m256i spread16(u64 keep) {
    const __m256i place = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
    return _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_set1_epi16(static_cast<short>(keep)), place), place);
  }

  template <class T>
  static void scale64(const T* input, T* output, u64 keep, compute_t<T> scale) {
    if constexpr (sizeof(T) == 8) {
      for (int i = 0; i < 64; i += 4) {
        const __m256d product = _mm256_mul_pd(_mm256_loadu_pd(input + i), _mm256_set1_pd(scale));
        _mm256_storeu_pd(output + i, _mm256_and_pd(product, _mm256_castsi256_pd(spread64(keep >> i))));
      }
    } else if constexpr (sizeof(T) == 4) {
      for (int i = 0; i < 64; i += 8) {
        const __m256 product = _mm256_mul_ps(_mm256_loadu_ps(input + i), _mm256_set1_ps(scale));
        _mm256_storeu_ps(output + i, _mm256_and_ps(product, _mm256_castsi256_ps(spread32(keep >> i))));
      }
    } else {
      scale_halves(input, output, keep, scale);
    }
  }

  static void scale_halves(const Float16* input, Float16* output, u64 keep, float scale) {
    for (int i = 0; i < 64; i += 8) {
      const __m128i found = _mm_loadu_si128(reinterpret_cast<const __m128i*>(input + i));
      const __m256 product = _mm256_mul_ps(_mm256_cvtph_ps(found), _mm256_set1_ps(scale));
      const __m256 kept = _mm256_and_ps(product, _mm256_castsi256_ps(spread32(keep >> i)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(output + i), _mm256_cvtps_ph(kept, _MM_FROUND_TO_NEAREST_INT));
    }
  }

  static void scale_halves(const BFloat16* input, BFloat16* output, u64 keep, float scale) {
    for (int i = 0; i < 64; i += 16) {
      const __m256i found = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input + i));
      const __m256i even = rounded(_mm256_slli_epi32(found, 16), scale);
      const __m256i odd = rounded(_mm256_and_si256(found, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))), scale);
      const __m256i both = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xAA);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(output + i), _mm256_and_si256(both, spread16(keep >> i)));
    }
  }

  static __m256i rounded(__m256i value, float scale) {
    const __m256i bits = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(value), _mm256_set1_ps(scale)));
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), even);
  }

  using Floats = VectorOf<float, 32>;
  using Doubles = VectorOf<double, 32>;

  static Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Doubles multiply_add(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
  static Floats widen(const Float16* values) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
  static void narrow(Floats values, Float16* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
};

}  // namespace avx2
}  // namespace
}  // namespace dropkit
