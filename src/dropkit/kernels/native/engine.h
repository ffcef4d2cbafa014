// The loops, written once for every instruction set: where the bits of a mask come from, and where they go.
//
// A source walks over places in the order of the tensor's memory and gives up to 64 bits at a time to a sink.
#pragma once

#include <type_traits>

#include "queue.h"
#include "scalar.h"
#include "sinks.h"
#include "softmax.h"
#include "stored.h"
#include "task.h"

namespace dropkit {
namespace {

constexpr int kTileGroups = 64;  // groups of columns whose part of the rounds is kept, 12 KB with AVX-512

// The counters of eight blocks, as they stand after two rounds without what depends on the row.
template <class Isa>
struct ColumnPart {
  static constexpr int kVectors = 8 / Isa::kBlocks;
  typename Isa::Vector first[kVectors], second[kVectors], third[kVectors];

  void set(const Key& key, u32 first_block) {  // a multiple of 8
    static constexpr u32 kEight[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    set(key, kEight, first_block);
  }
  // Of eight blocks that lie anywhere after a number.
  void set(const Key& key, const u32* blocks, u32 number) {
    for (int v = 0; v < kVectors; ++v) {
      typename Isa::Vector high, low;
      Isa::multiply(Isa::add(Isa::load(blocks + v * Isa::kBlocks), number), kMultiplier0, high, low);
      third[v] = low;
      const auto c2 = Isa::xor2(high, Isa::broadcast(key.stream ^ key.second[0]));
      Isa::multiply(c2, kMultiplier1, first[v], low);
      second[v] = Isa::xor2(low, Isa::broadcast(key.first[2]));
    }
  }
  // The counters of a vector's blocks after three rounds, of this and of what depends on the row.
  template <class RowVector>
  void counters(int v, const RowVector& row, typename Isa::Vector* c) const {
    typename Isa::Vector high, low;
    c[0] = Isa::xor2(first[v], row.first);
    c[2] = Isa::xor2(third[v], row.third);
    Isa::multiply(c[2], kMultiplier1, high, low);
    Isa::multiply(c[0], kMultiplier0, c[2], c[3]);
    c[0] = Isa::xor2(high, second[v]);
    c[1] = low;
    c[2] = Isa::xor2(c[2], row.fourth);
  }
};

// What depends on the row, for each block of a vector.
template <class Isa>
struct RowVector {
  typename Isa::Vector first, third, fourth;

  RowVector() = default;
  explicit RowVector(const RowPart& part)
      : first(Isa::broadcast(part.first)), third(Isa::broadcast(part.third)), fourth(Isa::broadcast(part.fourth)) {}
  // Of rows that differ from block to block.
  RowVector(const Key& key, const u32* lows, const u32* highs) {
    typename Isa::Vector high, low;
    Isa::multiply(Isa::load(highs), kMultiplier1, high, low);
    first = Isa::xor2(low, Isa::broadcast(key.first[1]));
    const auto c0 = Isa::xor3(high, Isa::load(lows), Isa::broadcast(key.first[0]));
    Isa::multiply(c0, kMultiplier0, high, low);
    third = Isa::xor2(high, Isa::broadcast(key.second[1]));
    fourth = Isa::xor2(low, Isa::broadcast(key.second[2]));
  }
};

// The round keys of all blocks of a vector, kept from group to group.
template <class Isa>
struct RoundKeys {
  typename Isa::Vector first[kRounds], second[kRounds];

  explicit RoundKeys(const Key& key) {
    for (int round = 0; round < kRounds; ++round) {
      first[round] = Isa::broadcast(key.first[round]);
      second[round] = Isa::broadcast(key.second[round]);
    }
  }
};

template <class Isa, int kVectors>
inline void rounds(typename Isa::Vector (*counters)[4], const RoundKeys<Isa>& keys, int from) {
  for (int round = from; round < kRounds; ++round) {
    for (int v = 0; v < kVectors; ++v) {
      auto* c = counters[v];
      typename Isa::Vector a_high, a_low, b_high, b_low;
      Isa::multiply(c[0], kMultiplier0, a_high, a_low);
      Isa::multiply(c[2], kMultiplier1, b_high, b_low);
      c[0] = Isa::xor3(b_high, c[1], keys.first[round]);
      c[1] = b_low;
      c[2] = Isa::xor3(a_high, c[3], keys.second[round]);
      c[3] = a_low;
    }
  }
}

// Settle the elements whose high half equals the threshold's: one in 65,536, so few that the words are made again for
// them, and the way of all others keeps its words in registers. `is_kept(g, i)` settles element i of a group.
template <class Isa, int kGroups, class Words, class IsKept>
__attribute__((noinline, cold)) void settle(Threshold threshold, u64* keep, const Words& words, const IsKept& is_kept) {
  constexpr int kVectors = 8 / Isa::kBlocks;
  typename Isa::Vector c[kGroups * kVectors][4];
  words(c);
  for (int g = 0; g < kGroups; ++g) {
    for (int v = 0; v < kVectors; ++v) {
      const int first = v * Isa::kBlocks * 8;
      for (u64 equal = Isa::equal(c[g * kVectors + v], threshold.high); equal; equal &= equal - 1) {
        const int i = first + __builtin_ctzll(equal);
        if (!is_kept(g, i)) keep[g] &= ~(u64{1} << i);
      }
    }
  }
}

// The mask bits of `kGroups` groups of eight blocks, whose chains of operations run side by side: one alone would wait for
// its own results.
template <class Isa, bool kTies, int kGroups, class Words, class IsKept>
__attribute__((always_inline)) inline void keep_words(Threshold threshold, u64* keep, const Words& words, const IsKept& is_kept) {
  constexpr int kVectors = 8 / Isa::kBlocks;
  typename Isa::Vector c[kGroups * kVectors][4];
  words(c);
  auto ties = Isa::no_ties();
  for (int g = 0; g < kGroups; ++g) {
    keep[g] = 0;
    for (int v = 0; v < kVectors; ++v) {
      keep[g] |= Isa::template reach<kTies>(c[g * kVectors + v], threshold.high, ties) << (v * Isa::kBlocks * 8);
    }
  }
  if constexpr (kTies) {
    if (Isa::any(ties)) settle<Isa, kGroups>(threshold, keep, words, is_kept);
  }
}

template <class Isa, bool kTies, int kGroups>
inline void keep_words(const ColumnPart<Isa>* columns, u64 first_column, u64 row, const RowPart& part, const Key& key, const RoundKeys<Isa>& keys, Threshold threshold, u64* keep) {
  constexpr int kVectors = 8 / Isa::kBlocks;
  const auto words = [&](typename Isa::Vector (*all)[4]) {
    const RowVector<Isa> row_vector(part);
    for (int v = 0; v < kGroups * kVectors; ++v) columns[v / kVectors].counters(v % kVectors, row_vector, all[v]);
    rounds<Isa, kGroups * kVectors>(all, keys, 3);
  };
  const auto is_kept = [&](int g, int i) { return half_at(key, row, first_column + g * kGroup + i, 1) >= threshold.low; };
  keep_words<Isa, kTies, kGroups>(threshold, keep, words, is_kept);
}

// Rows of many columns: the part of the columns is computed once a tile of them and serves every row.
template <class Isa, bool kTies, class Apply>
void wide_rows(const Task& task, const Key& key, Threshold threshold, Apply& apply) {
  const u64 begin = task.first_column + task.column_begin, end = task.first_column + task.column_end;
  const bool is_contiguous = task.column_end - task.column_begin == task.columns;
  const u64 last_group = (end - 1) / kGroup;
  const RoundKeys<Isa> keys(key);
  Queue<Apply> queue(apply);
  ColumnPart<Isa> parts[kTileGroups];
  for (u64 tile = begin / kGroup; tile <= last_group; tile += kTileGroups) {
    const int groups = static_cast<int>(last_group - tile < kTileGroups ? last_group - tile + 1 : kTileGroups);
    for (int g = 0; g < groups; ++g) parts[g].set(key, static_cast<u32>((tile + g) * (kGroup / 8)));
    const u64 tile_begin = tile * kGroup < begin ? begin : tile * kGroup;
    const u64 tile_end = (tile + groups) * kGroup < end ? (tile + groups) * kGroup : end;
    const bool is_whole_row = is_contiguous && tile_begin == begin && tile_end == end;
    apply.move(task.row_begin * task.columns + static_cast<i64>(tile_begin - task.first_column));
    for (i64 r = task.row_begin; r < task.row_end; ++r) {
      if (!is_whole_row) {
        queue.flush();
        apply.move(r * task.columns + static_cast<i64>(tile_begin - task.first_column));
      }
      const u64 row = task.first_row + r;
      const RowPart part(key, row);
      const auto give = [&](int g, u64 bits) {
        const u64 column = (tile + g) * kGroup;
        int count = kGroup;
        if (column < tile_begin) {
          bits >>= tile_begin - column;
          count -= static_cast<int>(tile_begin - column);
        }
        if (column + kGroup > tile_end) {
          count -= static_cast<int>(column + kGroup - tile_end);
          bits &= ones(count);
        }
        queue.put(bits, count);
      };
      int g = 0;
      const auto draw = [&](auto at_once) {
        constexpr int kAtOnce = decltype(at_once)::value;
        for (u64 keep[kAtOnce]; g + kAtOnce <= groups; g += kAtOnce) {
          keep_words<Isa, kTies, kAtOnce>(parts + g, (tile + g) * kGroup, row, part, key, keys, threshold, keep);
          for (int i = 0; i < kAtOnce; ++i) give(g + i, keep[i]);
        }
      };
      if constexpr (Isa::kGroupsAtOnce > 2) draw(std::integral_constant<int, Isa::kGroupsAtOnce>());
      if constexpr (Isa::kGroupsAtOnce > 1) draw(std::integral_constant<int, 2>());
      draw(std::integral_constant<int, 1>());
    }
    queue.flush();
  }
}

// Whole rows of at most 32 columns: several fill a vector, and the bits that no column has are left out.
template <class Isa, bool kTies, class Apply>
void narrow_rows(const Task& task, const Key& key, Threshold threshold, Apply& apply) {
  const u64 begin = task.first_column + task.column_begin, end = task.first_column + task.column_end;
  const int blocks_a_row = static_cast<int>(((end - 1) >> 3) - (begin >> 3) + 1);
  const int rows_a_vector = 8 / blocks_a_row;
  u32 blocks[8], rows_on[8];  // how many rows after the first
  u64 chosen = 0;             // which of the 64 places have a column
  for (int i = 0; i < 8; ++i) {
    blocks[i] = static_cast<u32>(begin >> 3) + i % blocks_a_row;
    rows_on[i] = i / blocks_a_row;
    for (u64 lane = 0; lane < 8; ++lane) {
      const u64 column = u64{blocks[i]} * 8 + lane;
      if (column >= begin && column < end) chosen |= u64{1} << (8 * i + lane);
    }
  }
  const RoundKeys<Isa> keys(key);
  Queue<Apply> queue(apply);
  apply.move(task.row_begin * task.columns);
  for (i64 r = task.row_begin; r < task.row_end; r += rows_a_vector) {
    const u64 first_row = task.first_row + r;
    u32 highs[8];
    for (int i = 0; i < 8; ++i) highs[i] = static_cast<u32>((first_row + rows_on[i]) >> 32);
    const bool is_one_high = highs[0] == highs[7];  // as always, but where the row's number passes a multiple of 2**32
    const auto words = [&](typename Isa::Vector (*all)[4]) {
      for (int v = 0; v < 8 / Isa::kBlocks; ++v) {
        const int at = v * Isa::kBlocks;
        all[v][0] = Isa::load(blocks + at);
        all[v][1] = Isa::add(Isa::load(rows_on + at), static_cast<u32>(first_row));
        all[v][2] = is_one_high ? Isa::broadcast(highs[0]) : Isa::load(highs + at);
        all[v][3] = Isa::broadcast(key.stream);
      }
      rounds<Isa, 8 / Isa::kBlocks>(all, keys, 0);
    };
    const auto is_kept = [&](int, int i) {
      const u64 row = first_row + rows_on[i >> 3], column = u64{blocks[i >> 3]} * 8 + (i & 7);
      return half_at(key, row, column, 1) >= threshold.low;
    };
    const i64 rows = task.row_end - r < rows_a_vector ? task.row_end - r : rows_a_vector;
    const u64 places = chosen & ones(static_cast<int>(rows) * blocks_a_row * 8);
    u64 bits;
    keep_words<Isa, kTies, 1>(threshold, &bits, words, is_kept);
    queue.put(Isa::extract(bits, places), __builtin_popcountll(places));
  }
  queue.flush();
}

template <class Apply>
void constant(const Task& task, bool keep, Apply& apply) {
  for (i64 row = task.row_begin; row < task.row_end; ++row) {
    apply.move(row * task.columns + task.column_begin);
    for (i64 left = task.column_end - task.column_begin; left > 0; left -= kGroup) {
      const int count = static_cast<int>(left < kGroup ? left : kGroup);
      if (count == kGroup) {
        apply.full(keep ? ~u64{0} : 0);
      } else {
        apply.partial(keep ? ones(count) : 0, count);
      }
    }
  }
}

template <class Isa, bool kTies, class Apply>
void drawn(const Task& task, Apply& apply) {
  const Key key(task.key, static_cast<u32>(task.stream));
  const Threshold threshold(task.threshold);
  const u64 begin = task.first_column + task.column_begin, end = task.first_column + task.column_end;
  const bool is_whole_row = task.column_end - task.column_begin == task.columns;
  if (is_whole_row && ((end - 1) >> 3) - (begin >> 3) < 4) {  // two rows or more to a vector of eight blocks
    narrow_rows<Isa, kTies>(task, key, threshold, apply);
  } else {
    wide_rows<Isa, kTies>(task, key, threshold, apply);
  }
}

template <class Isa, class Apply>
void walk(const Task& task, Apply& apply) {
  if (task.row_begin >= task.row_end || task.column_begin >= task.column_end) return;
  if (task.threshold == 0 || task.threshold >= u64{1} << 32) {
    constant(task, task.threshold == 0, apply);
  } else if (task.threshold & 0xFFFF) {
    drawn<Isa, true>(task, apply);
  } else {
    drawn<Isa, false>(task, apply);
  }
}

template <class Isa, class Sink>
void fill(const Task& task) {
  Sink sink(task);
  walk<Isa>(task, sink);
}

template <class Isa, class Sink>
void fill_behind(const Task& task) {
  Behind<Sink> sink(task);
  walk<Isa, AnySink>(task, sink);
  sink.flush();
}

// Few rows at a time, which are in the cache when their dropout finds them.
template <class Isa, class T>
void fill_softmax(const Task& task) {
  softmax_rows<Isa, T>(task);
  Task rest = task;
  rest.input = task.output;
  if (task.threshold) fill<Isa, Scale<Isa, T>>(rest);
}

template <class Isa, class Step>
constexpr Kernels mapped() {
  return {{fill_behind<Isa, Map<Isa, float, Step>>, fill_behind<Isa, Map<Isa, double, Step>>, fill_behind<Isa, Map<Isa, Float16, Step>>, fill_behind<Isa, Map<Isa, BFloat16, Step>>}};
}

template <class Isa>
constexpr Table table(const char* name, bool (*is_supported)(), Fields fields) {
  return {
      name,
      is_supported,
      {{fill<Isa, Scale<Isa, float>>, fill<Isa, Scale<Isa, double>>, fill<Isa, Scale<Isa, Float16>>, fill<Isa, Scale<Isa, BFloat16>>}},
      {{apply_bits<Scale<Isa, float>>, apply_bits<Scale<Isa, double>>, apply_bits<Scale<Isa, Float16>>, apply_bits<Scale<Isa, BFloat16>>}},
      {{fill<Isa, Affine<Isa, float>>, fill<Isa, Affine<Isa, double>>, fill_behind<Isa, Affine<Isa, Float16>>, fill_behind<Isa, Affine<Isa, BFloat16>>}},
      {{apply_bits<Affine<Isa, float>>, apply_bits<Affine<Isa, double>>, apply_bits<Affine<Isa, Float16>>, apply_bits<Affine<Isa, BFloat16>>}},
      // As light as a multiplication, and waiting for memory where numbers are wide, it is not worth a call.
      {{fill<Isa, Map<Isa, float, AddStep>>, fill<Isa, Map<Isa, double, AddStep>>, fill_behind<Isa, Map<Isa, Float16, AddStep>>, fill_behind<Isa, Map<Isa, BFloat16, AddStep>>}},
      {mapped<Isa, ActivateStep<Relu>>(), mapped<Isa, ActivateStep<Gelu>>(), mapped<Isa, ActivateStep<GeluTanh>>(), mapped<Isa, ActivateStep<Silu>>()},
      {mapped<Isa, ReluGradientStep>(), mapped<Isa, GradientStep<Gelu>>(), mapped<Isa, GradientStep<GeluTanh>>(), mapped<Isa, GradientStep<Silu>>()},
      {{fill_softmax<Isa, float>, fill_softmax<Isa, double>, nullptr, nullptr}},
      fill_behind<Isa, StoreBits>,
      fill_behind<Isa, StoreBytes<Isa>>,
      fields,
  };
}

}  // namespace
}  // namespace dropkit
