// Masks drawn before, as packed bits: applied in whatever order a tensor's elements lie in memory.
#pragma once

#include "queue.h"
#include "scalar.h"
#include "sinks.h"
#include "task.h"

namespace dropkit {
namespace {

// `count` bits, from any bit on.
inline u64 bits_at(const u64* words, i64 at, int count) {
  const i64 word = at / kGroup;
  const int skipped = static_cast<int>(at % kGroup);
  u64 bits = words[word] >> skipped;
  if (skipped + count > kGroup) bits |= words[word + 1] << (kGroup - skipped);
  return bits & ones(count);
}

// Bit j of word i becomes bit i of word j: squares across the diagonal are exchanged, ever smaller ones.
inline void transpose(u64* words) {
  u64 low = ~u64{0} >> 32;
  for (int half = 32; half; half >>= 1, low ^= low << half) {
    for (int square = 0; square < kGroup; square += 2 * half) {
      for (int i = square; i < square + half; ++i) {
        const u64 changed = (words[i] >> half ^ words[i + half]) & low;
        words[i] ^= changed << half;
        words[i + half] ^= changed;
      }
    }
  }
}

// Counts through axes, the last one fastest, and follows where the bits and the elements are.
class Odometer {
 public:
  Odometer(const StoredTask& task, i64 at) : bit(task.first_bit), axes_(task.axes), rank_(task.rank) {
    for (int a = rank_ - 1; a >= 0; --a) {
      index_[a] = at % axes_[a].length;
      at /= axes_[a].length;
      bit += index_[a] * axes_[a].bit_step;
      element += index_[a] * axes_[a].stride;
    }
  }
  i64 last() const { return index_[rank_ - 1]; }
  void next() {
    for (int a = rank_ - 1; a >= 0; --a) {
      bit += axes_[a].bit_step;
      element += axes_[a].stride;
      if (++index_[a] < axes_[a].length) return;
      bit -= axes_[a].length * axes_[a].bit_step;
      element -= axes_[a].length * axes_[a].stride;
      index_[a] = 0;
    }
  }

  i64 bit, element = 0;

 private:
  const Axis* axes_;
  int rank_;
  i64 index_[kMaxRank];
};

// Neighbours in memory have neighbouring bits, or share one.
template <class Sink>
void along_runs(const StoredTask& task, Sink& sink) {
  Queue<Sink> queue(sink);
  Odometer at(task, task.begin);
  sink.move(at.element);
  for (i64 unit = task.begin; unit < task.end; ++unit, at.next()) {
    const i64 skipped = at.last() * task.segment;
    const i64 run = task.inner.length - skipped < task.segment ? task.inner.length - skipped : task.segment;
    for (i64 done = 0; done < run; done += kGroup) {
      const int count = static_cast<int>(run - done < kGroup ? run - done : kGroup);
      if (task.inner.bit_step) {
        queue.put(bits_at(task.words, at.bit + done, count), count);
      } else {
        queue.put(task.words[at.bit / kGroup] >> at.bit % kGroup & 1 ? ones(count) : 0, count);
      }
    }
  }
  queue.flush();
}

// Neighbouring bits lie along another axis than neighbouring elements, as in images whose channels come last: squares of
// 64 by 64 bits are turned over.
template <class Sink>
void across_runs(const StoredTask& task, Sink& sink) {
  constexpr i64 kSquares = 8;  // at a time, 4 KB of bits
  Odometer at(task, task.begin);
  for (i64 unit = task.begin; unit < task.end; ++unit, at.next()) {
    const i64 skipped = at.last() * task.segment, left = task.across.length - skipped;
    const int rows = static_cast<int>(left < task.segment ? left : task.segment);
    for (i64 first = 0; first < task.inner.length; first += kSquares * kGroup) {
      const i64 columns = task.inner.length - first < kSquares * kGroup ? task.inner.length - first : kSquares * kGroup;
      u64 squares[kSquares][kGroup];
      for (i64 square = 0; square * kGroup < columns; ++square) {
        for (i64 i = 0; i < kGroup; ++i) {
          const i64 column = square * kGroup + i;
          squares[square][i] = column < columns ? bits_at(task.words, at.bit + (first + column) * task.inner.bit_step, rows) : 0;
        }
        transpose(squares[square]);
      }
      Queue<Sink> queue(sink);
      sink.move(at.element + first);
      for (int row = 0; row < rows; ++row) {
        if (row && task.across.stride != columns) {
          queue.flush();
          sink.move(at.element + row * task.across.stride + first);
        }
        for (i64 done = 0; done < columns; done += kGroup) {
          queue.put(squares[done / kGroup][row], static_cast<int>(columns - done < kGroup ? columns - done : kGroup));
        }
      }
      queue.flush();
    }
  }
}

template <class Sink>
void apply_bits(const StoredTask& task) {
  Sink sink(task);
  if (task.across.length) {
    across_runs(task, sink);
  } else {
    along_runs(task, sink);
  }
}

}  // namespace
}  // namespace dropkit
