// Fields of numbers: both planes of the draws, and the integers, uniforms and normals that are made of them.
//
// A normal is computed by additions, multiplications, divisions and square roots alone, which every processor rounds
// alike: so its bits are the same for all instruction sets. Nothing branches, so that compilers vectorise the loops.
#pragma once

#include <cmath>

#include "engine.h"

namespace dropkit {
namespace {

constexpr u32 kFold = 0x64726F70;            // the counter word that keeps keys apart from masks
constexpr u32 kSecondUniform = 0xFFFFFFFF;   // the field whose key gives a normal its second uniform

inline u64 second_key(u64 key) {
  const Words words = philox(Key(key, 0), kSecondUniform, 0, 0, kFold);
  return words.word[0] | u64{words.word[1]} << 32;
}

// Blocks that are drawn together, each with a row of its own, and the numbers that they have.
constexpr int kBlocksAtOnce = 16, kPiece = 8 * kBlocksAtOnce;
struct Blocks {
  u32 blocks[kBlocksAtOnce], lows[kBlocksAtOnce], highs[kBlocksAtOnce];
};

// The draws of blocks under one key, in the order of their columns.
template <class Isa>
__attribute__((noinline)) void draw(const RoundKeys<Isa>& keys, u32 stream, const Blocks& at, u32* draws) {
  constexpr int kVectors = Isa::kGroupsAtOnce * 4 / Isa::kBlocks;  // in flight, with two planes of each
  static_assert(kBlocksAtOnce % (kVectors * Isa::kBlocks) == 0, "a call draws all blocks and no more");
  for (int block = 0; block < kBlocksAtOnce; block += kVectors * Isa::kBlocks) {
    typename Isa::Vector c[2 * kVectors][4];
    for (int v = 0; v < 2 * kVectors; ++v) {
      const int first = block + v % kVectors * Isa::kBlocks;
      const u32 plane = v / kVectors;
      c[v][0] = Isa::xor2(Isa::load(at.blocks + first), Isa::broadcast(plane << 31));
      c[v][1] = Isa::load(at.lows + first);
      c[v][2] = Isa::load(at.highs + first);
      c[v][3] = Isa::broadcast(stream);
    }
    rounds<Isa, 2 * kVectors>(c, keys, 0);
    for (int v = 0; v < kVectors; ++v) Isa::merge(c[v], c[kVectors + v], draws + (block + v * Isa::kBlocks) * 8);
  }
}

// What a type of numbers is made of: an integer of its length, the bits of 2 to the number of its fraction's bits and of
// the square root of a half, and the lengths of series that leave normals an error of 1.7e-6 and 2e-14 at most.
template <class F>
struct Number;
template <>
struct Number<float> {
  using Bits = u32;
  static constexpr int kFraction = 23, kLog = 4, kSine = 6;
  static constexpr Bits kCount = 0x4B000000, kRootOfHalf = 0x3F3504F3;
  static float of(Bits bits) { return bits_to_float(bits); }
  static Bits bits(float value) { return float_to_bits(value); }
};
template <>
struct Number<double> {
  using Bits = u64;
  static constexpr int kFraction = 52, kLog = 8, kSine = 10;
  static constexpr Bits kCount = 0x4330000000000000, kRootOfHalf = 0x3FE6A09E667F3BCD;
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

// An integer below 2 to the number of the fraction's bits, exactly.
template <class F>
inline F count(typename Number<F>::Bits value) {
  using N = Number<F>;
  return N::of(N::kCount | value) - N::of(N::kCount);
}

inline void uniform(u32 draw, float& found) { found = (count<float>(draw >> 9) + 0.5f) * 0x1p-23f; }
inline void uniform(u32 draw, double& found) { found = (count<double>(draw) + 0.5) * 0x1p-32; }

// Coefficients of x**(2k + 1) in the series of artanh(x), and in that of sin(2 pi x).
template <class F, int kTerms>
struct Series {
  F artanh[kTerms], sine[kTerms];

  constexpr Series() : artanh(), sine() {
    constexpr double kTurn = 6.28318530717958647692;
    double power = kTurn;
    for (int k = 0; k < kTerms; ++k) {
      artanh[k] = static_cast<F>(1.0 / (2 * k + 1));
      sine[k] = static_cast<F>(power);
      power *= -kTurn * kTurn / ((2 * k + 2) * (2 * k + 3));
    }
  }
};

template <class F, int kTerms>
inline F polynomial(const F* coefficients, F x) {
  F sum = coefficients[kTerms - 1];
  for (int k = kTerms - 2; k >= 0; --k) sum = sum * x + coefficients[k];
  return sum;
}

// The logarithm of a number between 2**-64 and 1: ln(2**e m) = e ln 2 + 2 artanh((m - 1) / (m + 1)), with m within a factor
// of the square root of two of 1.
template <class F>
inline F logarithm(F x) {
  using N = Number<F>;
  using Bits = typename N::Bits;
  static constexpr Series<F, N::kLog> series;
  constexpr Bits kMost = 64;  // keeps the exponent's count positive
  const Bits from_root = N::bits(x) - N::kRootOfHalf + (kMost << N::kFraction);
  const Bits exponent = from_root >> N::kFraction;
  const F m = N::of(N::bits(x) - (exponent << N::kFraction) + (kMost << N::kFraction));
  const F s = (m - 1) / (m + 1), e = count<F>(exponent) - F(kMost);
  return e * F(0.69314718055994530942) + 2 * s * polynomial<F, N::kLog>(series.artanh, s * s);
}

// The cosine of 2 pi x, 0 < x < 1: cos(2 pi x) = sin(2 pi (|x - 1/2| - 1/4)), whose argument is exact.
template <class F>
inline F cosine_of_turns(F x) {
  using N = Number<F>;
  static constexpr Series<F, N::kSine> series;
  const F t = std::fabs(x - F(0.5)) - F(0.25);
  return t * polynomial<F, N::kSine>(series.sine, t * t);
}

// What becomes of draws: `of` makes a number of them, or of two, and `put` stores numbers that are neighbours.
template <class T>
struct Stored {
  using Type = T;
  static void put(const Task&, const T* numbers, T* to, const T*, i64 count) { std::memcpy(to, numbers, count * sizeof(T)); }
};

struct Integer : Stored<i64> {
  static constexpr int kKeys = 1;
  static i64 of(u32 draw, u32) { return draw; }
};

template <class T>
struct Uniform : Stored<T> {
  static constexpr int kKeys = 1;
  static T of(u32 draw, u32) {
    compute_t<T> found;
    uniform(draw, found);
    return from_compute<T>(found);
  }
};

// Box and Muller (1958), by the cosine alone.
template <class F>
inline F normal(u32 draw, u32 second_draw) {
  F first, second;
  uniform(draw, first);
  uniform(second_draw, second);
  return std::sqrt(-2 * logarithm(first)) * cosine_of_turns(second);
}

template <class T>
struct Normal : Stored<T> {
  static constexpr int kKeys = 2;
  static T of(u32 draw, u32 second_draw) { return from_compute<T>(normal<compute_t<T>>(draw, second_draw)); }
};

// An input times one plus a multiple of a normal.
template <class T>
struct Gaussian {
  static constexpr int kKeys = 2;
  using Type = T;
  static compute_t<T> of(u32 draw, u32 second_draw) { return normal<compute_t<T>>(draw, second_draw); }
  static void put(const Task& task, const compute_t<T>* normals, T* to, const T* from, i64 count) {
    const compute_t<T> scale = static_cast<compute_t<T>>(task.scale);
    for (i64 i = 0; i < count; i += kGroup) {
      ask_ahead<false>(from + i);
      ask_ahead<true>(to + i);
    }
    for (i64 i = 0; i < count; ++i) to[i] = from_compute<T>(to_float(from[i]) * (1 + scale * normals[i]));
  }
};

// Move the numbers of a row to where those of the row before end. Whole blocks are copied: the next row comes to lie on
// what is too much.
template <class Number>
inline void close_up(Number* numbers, i64 row, i64 blocks, i64 skipped, i64 count) {
  const Number* from = numbers + 8 * row * blocks + skipped;
  Number* to = numbers + row * count;
  for (i64 block = 0; block < blocks; ++block) {
    Number eight[8];
    std::memcpy(eight, from + 8 * block, sizeof eight);
    std::memcpy(to + 8 * block, eight, sizeof eight);
  }
}

// The numbers of a part of a slice. Rows of few blocks are drawn several at once, longer ones a piece at a time.
template <class Isa, class Step>
void field(const Task& task) {
  using T = typename Step::Type;
  if (task.row_begin >= task.row_end || task.column_begin >= task.column_end) return;
  const u32 stream = static_cast<u32>(task.stream);
  const RoundKeys<Isa> keys(Key(task.key, stream)), second_keys(Key(second_key(task.key), stream));
  const u64 begin = task.first_column + task.column_begin, end = task.first_column + task.column_end;
  const u64 first_block = begin >> 3, blocks_a_row = ((end - 1) >> 3) - first_block + 1;
  const int blocks_a_piece = blocks_a_row < kBlocksAtOnce ? static_cast<int>(blocks_a_row) : kBlocksAtOnce;
  const int rows_at_once = kBlocksAtOnce / blocks_a_piece;
  T* const output = static_cast<T*>(task.output) + task.offset;
  const T* const input = task.input ? static_cast<const T*>(task.input) + task.offset : output;
  for (i64 r = task.row_begin; r < task.row_end; r += rows_at_once) {
    const int rows = static_cast<int>(task.row_end - r < rows_at_once ? task.row_end - r : rows_at_once);
    Blocks at;
    for (int i = 0; i < kBlocksAtOnce; ++i) {
      const u64 row = task.first_row + r + i / blocks_a_piece;
      at.lows[i] = static_cast<u32>(row);
      at.highs[i] = static_cast<u32>(row >> 32);
    }
    for (u64 block = first_block; block < first_block + blocks_a_row; block += kBlocksAtOnce) {
      alignas(64) u32 draws[Step::kKeys][kPiece];
      for (int i = 0; i < kBlocksAtOnce; ++i) at.blocks[i] = static_cast<u32>(block) + i % blocks_a_piece;
      draw<Isa>(keys, stream, at, draws[0]);
      if constexpr (Step::kKeys == 2) draw<Isa>(second_keys, stream, at, draws[1]);
      const u64 low = block * 8 < begin ? begin : block * 8, high = block * 8 + kPiece < end ? block * 8 + kPiece : end;
      decltype(Step::of(0, 0)) numbers[kPiece + 8];
      for (int i = 0; i < kPiece; ++i) numbers[i] = Step::of(draws[0][i], draws[Step::kKeys - 1][i]);
      const i64 first = r * task.columns + static_cast<i64>(low - task.first_column), count = high - low;
      if (count == kPiece) {
        Step::put(task, numbers, output + first, input + first, kPiece);
      } else if (count == task.columns) {  // whole rows, which are neighbours
        for (int row = 0; row < rows; ++row) close_up(numbers, row, blocks_a_piece, low - block * 8, count);
        Step::put(task, numbers, output + first, input + first, rows * count);
      } else {
        for (int row = 0; row < rows; ++row) {
          const i64 to = first + row * task.columns;
          Step::put(task, numbers + 8 * row * blocks_a_piece + (low - block * 8), output + to, input + to, count);
        }
      }
    }
  }
}

template <class Isa>
constexpr Fields fields() {
  return {
      field<Isa, Integer>,
      {{field<Isa, Uniform<float>>, field<Isa, Uniform<double>>, field<Isa, Uniform<Float16>>, field<Isa, Uniform<BFloat16>>}},
      {{field<Isa, Normal<float>>, field<Isa, Normal<double>>, field<Isa, Normal<Float16>>, field<Isa, Normal<BFloat16>>}},
      {{field<Isa, Gaussian<float>>, field<Isa, Gaussian<double>>, field<Isa, Gaussian<Float16>>, field<Isa, Gaussian<BFloat16>>}},
  };
}

}  // namespace
}  // namespace dropkit
