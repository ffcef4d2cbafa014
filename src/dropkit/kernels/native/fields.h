// Fields of numbers: both planes of the draws, and the integers, uniforms and normals that are made of them.
#pragma once

#include "engine.h"
#include "normal.h"

namespace dropkit {
namespace {

constexpr u32 kFold = 0x64726F70;            // the counter word that keeps keys apart from masks
constexpr u32 kSecondUniform = 0xFFFFFFFF;   // the field whose key gives a normal its second uniform

inline u64 second_key(u64 key) {
  const Words words = philox(Key(key, 0), kSecondUniform, 0, 0, kFold);
  return words.word[0] | u64{words.word[1]} << 32;
}

template <class Number>
constexpr Number smaller(Number a, Number b) {
  return a < b ? a : b;
}

// Blocks that are drawn together, and the numbers that they have.
constexpr int kBlocksAtOnce = 16, kPiece = 8 * kBlocksAtOnce;
constexpr int kTilePieces = 8;  // pieces of columns whose part of the rounds is kept

// The draws of a key, both planes of them. Columns are set for a tile of pieces, and rows for the blocks of one; then each
// piece can be drawn.
template <class Isa>
class Draws {
 public:
  Draws(u64 key, u32 stream) : key_(key, stream), keys_(key_) {}
  void set_columns(int piece, const u32* blocks_on, u32 first_block) {
    for (u32 plane = 0; plane < 2; ++plane) {
      for (int half = 0; half < 2; ++half) columns_[piece][plane][half].set(key_, blocks_on + 8 * half, first_block | plane << 31);
    }
  }
  void set_rows(const u32* lows, const u32* highs) {
    for (int v = 0; v < kVectors; ++v) rows_[v] = RowVector<Isa>(key_, lows + v * Isa::kBlocks, highs + v * Isa::kBlocks);
  }
  // In the order of the columns.
  __attribute__((noinline)) void draw(int piece, u32* to) const {
    constexpr int kAtOnce = Isa::kGroupsAtOnce * 4 / Isa::kBlocks;  // in flight, with two planes of each
    static_assert(kVectors % kAtOnce == 0, "a call draws all blocks and no more");
    const auto& columns = columns_[piece];
    for (int first = 0; first < kVectors; first += kAtOnce) {
      typename Isa::Vector c[2 * kAtOnce][4];
      for (int i = 0; i < 2 * kAtOnce; ++i) {
        const int v = first + i % kAtOnce;
        columns[i / kAtOnce][v / kVectorsAHalf].counters(v % kVectorsAHalf, rows_[v], c[i]);
      }
      rounds<Isa, 2 * kAtOnce>(c, keys_, 3);
      for (int i = 0; i < kAtOnce; ++i) Isa::merge(c[i], c[kAtOnce + i], to + (first + i) * Isa::kBlocks * 8);
    }
  }

 private:
  static constexpr int kVectors = kBlocksAtOnce / Isa::kBlocks, kVectorsAHalf = kVectors / 2;
  Key key_;
  RoundKeys<Isa> keys_;
  ColumnPart<Isa> columns_[kTilePieces][2][2];  // of each plane, of each half of a piece
  RowVector<Isa> rows_[kVectors];
};

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
  static T of(u32 draw, u32) { return from_compute<T>(uniform<compute_t<T>>(draw)); }
};

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

// Store the numbers of a piece: `count` of each of its rows, from a column on, after `skipped` that are not asked for.
template <class Step, class Number>
inline void put_piece(const Task& task, Number* numbers, i64 blocks_a_row, i64 row, i64 rows, i64 column, i64 skipped, i64 count) {
  using T = typename Step::Type;
  const i64 at = task.offset + row * task.columns + column;
  T* const output = static_cast<T*>(task.output) + at;
  const T* const input = task.input ? static_cast<const T*>(task.input) + at : output;
  if (count == kPiece) {
    Step::put(task, numbers, output, input, kPiece);
  } else if (count == task.columns) {  // whole rows, which are neighbours
    for (i64 i = 0; i < rows; ++i) close_up(numbers, i, blocks_a_row, skipped, count);
    Step::put(task, numbers, output, input, rows * count);
  } else {
    for (i64 i = 0; i < rows; ++i) {
      Step::put(task, numbers + 8 * i * blocks_a_row + skipped, output + i * task.columns, input + i * task.columns, count);
    }
  }
}

// The numbers of a part of a slice. Rows of few blocks are drawn several at once, longer ones a piece at a time.
template <class Isa, class Step>
void field(const Task& task) {
  if (task.row_begin >= task.row_end || task.column_begin >= task.column_end) return;
  const u64 begin = task.first_column + task.column_begin, end = task.first_column + task.column_end;
  const u64 first_block = begin >> 3, end_block = ((end - 1) >> 3) + 1;
  const i64 blocks_a_row = smaller<i64>(end_block - first_block, kBlocksAtOnce), rows_at_once = kBlocksAtOnce / blocks_a_row;
  u32 blocks_on[kBlocksAtOnce], lows[kBlocksAtOnce], highs[kBlocksAtOnce];
  for (int i = 0; i < kBlocksAtOnce; ++i) blocks_on[i] = static_cast<u32>(i % blocks_a_row);
  const u32 stream = static_cast<u32>(task.stream);
  Draws<Isa> sources[] = {{task.key, stream}, {Step::kKeys == 2 ? second_key(task.key) : 0, stream}};
  for (u64 tile = first_block; tile < end_block; tile += kTilePieces * kBlocksAtOnce) {
    const int pieces = smaller<int>(kTilePieces, (end_block - tile + kBlocksAtOnce - 1) / kBlocksAtOnce);
    for (int k = 0; k < Step::kKeys; ++k) {
      for (int piece = 0; piece < pieces; ++piece) sources[k].set_columns(piece, blocks_on, static_cast<u32>(tile) + piece * kBlocksAtOnce);
    }
    for (i64 r = task.row_begin; r < task.row_end; r += rows_at_once) {
      const i64 rows = smaller<i64>(task.row_end - r, rows_at_once);
      for (int i = 0; i < kBlocksAtOnce; ++i) {
        const u64 row = task.first_row + r + i / blocks_a_row;
        lows[i] = static_cast<u32>(row);
        highs[i] = static_cast<u32>(row >> 32);
      }
      for (int k = 0; k < Step::kKeys; ++k) sources[k].set_rows(lows, highs);
      for (int piece = 0; piece < pieces; ++piece) {
        alignas(64) u32 draws[Step::kKeys][kPiece];
        for (int k = 0; k < Step::kKeys; ++k) sources[k].draw(piece, draws[k]);
        decltype(Step::of(0, 0)) numbers[kPiece + 8];
        for (int i = 0; i < kPiece; ++i) numbers[i] = Step::of(draws[0][i], draws[Step::kKeys - 1][i]);
        const u64 drawn = (tile + piece * kBlocksAtOnce) * 8, low = drawn < begin ? begin : drawn;
        put_piece<Step>(task, numbers, blocks_a_row, r, rows, low - task.first_column, low - drawn, smaller(drawn + kPiece, end) - low);
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
