// Softmax of rows, and dropout of it: the weights of attention.
#pragma once

#include <limits>

#include "activation.h"
#include "task.h"

namespace dropkit {
namespace {

// 64 bytes of numbers, in as many vectors as an instruction set needs for them: so sums have the same order in all.
template <class Isa, class T>
struct Line {
  using V = std::conditional_t<std::is_same_v<T, double>, typename Isa::Doubles, typename Isa::Floats>;
  static constexpr int kParts = 64 / sizeof(V), kCount = 64 / sizeof(T);
  V part[kParts];

  static Line filled(T value) {
    Line found;
    for (auto& each : found.part) each = all<V>(value);
    return found;
  }
  // The numbers at the end of a row; after it infinitely small ones, whose exponential is 0.
  static Line loaded(const T* from, i64 count) {
    Line found = filled(-std::numeric_limits<T>::infinity());
    std::memcpy(found.part, from, count * sizeof(T));
    return found;
  }
  static Line loaded(const T* from) {
    Line found;
    for (int p = 0; p < kParts; ++p) std::memcpy(&found.part[p], from + p * kLanes<V>, sizeof(V));
    return found;
  }
  void store(T* to, i64 count) const { std::memcpy(to, part, count * sizeof(T)); }
  void store(T* to) const {
    for (int p = 0; p < kParts; ++p) std::memcpy(to + p * kLanes<V>, &part[p], sizeof(V));
  }

  // All numbers joined into one, by halves: in the same order whatever the vectors' width.
  template <class Join>
  T joined(Join join) const {
    Line found = *this;
    for (int width = kParts / 2; width; width /= 2) {
      for (int p = 0; p < width; ++p) found.part[p] = join(found.part[p], found.part[p + width]);
    }
    return halved(found.part[0], join);
  }
  template <class Vector, class Join>
  static T halved(Vector values, Join join) {
    if constexpr (sizeof(Vector) > 2 * sizeof(T)) {
      VectorOf<T, sizeof(Vector) / 2> halves[2];
      std::memcpy(halves, &values, sizeof values);
      return halved(join(halves[0], halves[1]), join);
    } else {
      return join(values, Vector{values[1], values[1]})[0];
    }
  }
};

// e to the power of what is not above 0. NaN stays.
template <class Isa, class V>
inline V decayed(V x) {
  const V found = x < -Fit<lane_t<V>>::kExponentRange ? V{} : exponential<Isa>(x);
  return x == x ? found : x;
}

// Give each line of a row to a function, and put back what becomes of it.
template <class L, class T, class Step>
inline void each_line(const T* from, T* to, i64 columns, Step step) {
  i64 i = 0;
  for (; i + L::kCount <= columns; i += L::kCount) {
    L line = L::loaded(from + i);
    step(line);
    if (to) line.store(to + i);
  }
  if (i < columns) {
    L line = L::loaded(from + i, columns - i);
    step(line);
    if (to) line.store(to + i, columns - i);
  }
}

template <class Isa, class T>
T largest(const T* from, i64 columns) {
  using L = Line<Isa, T>;
  L most = L::filled(-std::numeric_limits<T>::infinity());
  each_line<L, T>(from, nullptr, columns, [&](const L& line) {
    for (int p = 0; p < L::kParts; ++p) most.part[p] = line.part[p] > most.part[p] ? line.part[p] : most.part[p];
  });
  return most.joined([](auto a, auto b) { return a > b ? a : b; });
}

// Write the exponentials of a row less its largest number, and return their sum.
template <class Isa, class T>
T exponentials(const T* from, T* to, i64 columns, T top) {
  using L = Line<Isa, T>;
  L sum = L::filled(0);
  each_line<L>(from, to, columns, [&](L& line) {
    for (int p = 0; p < L::kParts; ++p) {
      line.part[p] = decayed<Isa>(line.part[p] - top);
      sum.part[p] += line.part[p];
    }
  });
  return sum.joined([](auto a, auto b) { return a + b; });
}

// Several rows take each step in turn: within one, every step would wait for the last.
template <class Isa, class T>
void softmax_rows(const Task& task) {
  constexpr i64 kRows = 16;
  using L = Line<Isa, T>;
  const i64 columns = task.columns;
  for (i64 begin = task.row_begin; begin < task.row_end; begin += kRows) {
    const i64 count = task.row_end - begin < kRows ? task.row_end - begin : kRows;
    const T* from = static_cast<const T*>(task.input) + task.offset + begin * columns;
    T *to = static_cast<T*>(task.output) + task.offset + begin * columns, of_row[kRows];
    for (i64 row = 0; row < count; ++row) of_row[row] = largest<Isa>(from + row * columns, columns);
    for (i64 row = 0; row < count; ++row) of_row[row] = 1 / exponentials<Isa>(from + row * columns, to + row * columns, columns, of_row[row]);
    for (i64 row = 0; row < count; ++row) {
      each_line<L, T>(to + row * columns, to + row * columns, columns, [&](L& line) {
        for (auto& each : line.part) each = each * of_row[row];
      });
    }
  }
}

}  // namespace
}  // namespace dropkit
