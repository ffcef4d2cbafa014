// Where the bits of a mask go: each sink takes up to 64 at a time, for the next elements in the tensor's memory.
#pragma once

#include "activation.h"
#include "scalar.h"
#include "task.h"

namespace dropkit {
namespace {

constexpr int kGroup = 64;      // elements to a word of bits

// A sink that multiplies what is kept.
template <class Isa, class T>
struct Scale {
  const T* input;
  T* output;
  const T* input_base;
  T* output_base;
  compute_t<T> scale;

  explicit Scale(const Task& task)
      : input_base(static_cast<const T*>(task.input) + task.offset),
        output_base(static_cast<T*>(task.output) + task.offset),
        scale(static_cast<compute_t<T>>(task.scale)) {
    move(0);
  }
  void move(i64 at) {
    input = input_base + at;
    output = output_base + at;
  }
  void full(u64 keep) {
    Isa::scale64(input, output, keep, scale);
    input += kGroup;
    output += kGroup;
  }
  void partial(u64 keep, int count) {
    T from[kGroup] = {}, to[kGroup];
    std::memcpy(from, input, count * sizeof(T));
    Isa::scale64(from, to, keep, scale);
    std::memcpy(output, to, count * sizeof(T));
    input += count;
    output += count;
  }
};

// A sink behind a call: the loops are compiled once for all such sinks, which is most of what there is to compile.
struct AnySink {
  virtual void move(i64 at) = 0;
  virtual void partial(u64 keep, int count) = 0;
  void full(u64 keep) { partial(keep, kGroup); }

 protected:
  ~AnySink() = default;
};

// A sink for whatever is computed of each element before it is kept or dropped, or after: in float32 or wider, and
// rounded once. `Step::run` maps 64 places; arrays of the computing type hold them, so that compilers vectorise.
template <class Isa, class T, class Step>
struct Map final : AnySink {
  using F = compute_t<T>;
  const T *input, *other, *bias;
  T* output;
  i64 at = 0, column = 0, columns;
  F scale;

  explicit Map(const Task& task)
      : input(static_cast<const T*>(task.input) + task.offset),
        other(task.other ? static_cast<const T*>(task.other) + task.offset : nullptr),
        bias(static_cast<const T*>(task.bias)),
        output(static_cast<T*>(task.output) + task.offset),
        columns(task.columns),
        scale(static_cast<F>(task.scale)) {}
  void move(i64 element) override {
    at = element;
    column = element % columns;
  }
  void partial(u64 keep, int count) override {
    if (count == kGroup) {
      run<kGroup>(keep, kGroup);
    } else {
      run<0>(keep, count);
    }
  }
  // A count that the compiler knows lets it vectorise what reads and writes.
  template <int kCount>
  void run(u64 keep, int some) {
    const int count = kCount ? kCount : some;
    alignas(64) F values[kGroup], others[kGroup], found[kGroup];
    if (!kCount) {
      for (int i = 0; i < kGroup; ++i) values[i] = others[i] = 0;
    }
    for (int i = 0; i < count; ++i) values[i] = to_float(input[at + i]);
    if (other) {
      for (int i = 0; i < count; ++i) others[i] = to_float(other[at + i]);
    }
    if (bias) add_bias<kCount>(other && Step::kBiasOnOther ? others : values, count);
    Step::template run<Isa>(values, others, keep, scale, found);
    for (int i = 0; i < count; ++i) output[at + i] = from_compute<T>(found[i]);
    at += count;
  }
  template <int kCount>
  void add_bias(F* values, int some) {
    const int count = kCount ? kCount : some;
    if (column + count <= columns) {
      for (int i = 0; i < count; ++i) values[i] += to_float(bias[column + i]);
      column += count;
      if (column == columns) column = 0;
    } else {
      for (int i = 0; i < count; ++i) {
        values[i] += to_float(bias[column]);
        if (++column == columns) column = 0;
      }
    }
  }
};

struct AddStep {
  static constexpr bool kBiasOnOther = false;
  template <class Isa, class F>
  static void run(const F* values, const F* others, u64 keep, F scale, F* found) {
    Isa::scale64(values, found, keep, scale);
    for (int i = 0; i < kGroup; ++i) found[i] += others[i];
  }
};

template <class Activation>
struct ActivateStep {
  static constexpr bool kBiasOnOther = false;
  template <class Isa, class F>
  static void run(const F* values, const F*, u64 keep, F scale, F* found) {
    for (int i = 0; i < kGroup; ++i) found[i] = Activation::value(values[i]);
    Isa::scale64(found, found, keep, scale);
  }
};

// The gradient of the above: `values` is the gradient of its result, `others` what it was computed of.
template <class Activation>
struct GradientStep {
  static constexpr bool kBiasOnOther = true;
  template <class Isa, class F>
  static void run(const F* values, const F* others, u64 keep, F scale, F* found) {
    for (int i = 0; i < kGroup; ++i) found[i] = values[i] * Activation::derivative(others[i]);
    Isa::scale64(found, found, keep, scale);
  }
};

// A sink that stores bits, from any bit on. Words at the edge of two tasks may be written by two threads.
struct StoreBits final : AnySink {
  u64* words;
  i64 offset, at;

  explicit StoreBits(const Task& task) : words(static_cast<u64*>(task.output)), offset(task.offset), at(task.offset) {}
  void move(i64 element) override { at = offset + element; }
  void partial(u64 keep, int count) override {
    if (count == kGroup && at % kGroup == 0) {
      words[at / kGroup] = keep;
      at += kGroup;
      return;
    }
    const int skipped = static_cast<int>(at % kGroup);
    __atomic_fetch_or(words + at / kGroup, keep << skipped, __ATOMIC_RELAXED);
    if (skipped + count > kGroup) __atomic_fetch_or(words + at / kGroup + 1, keep >> (kGroup - skipped), __ATOMIC_RELAXED);
    at += count;
  }
};

// A sink that stores a byte an element, as PyTorch stores a bool.
template <class Isa>
struct StoreBytes final : AnySink {
  unsigned char *base, *output;

  explicit StoreBytes(const Task& task) : base(static_cast<unsigned char*>(task.output) + task.offset), output(base) {}
  void move(i64 at) override { output = base + at; }
  void partial(u64 keep, int count) override {
    if (count == kGroup) {
      Isa::spread64(keep, output);
    } else {
      for (int i = 0; i < count; ++i) output[i] = keep >> i & 1;
    }
    output += count;
  }
};

}  // namespace
}  // namespace dropkit
