// Where the bits of a mask go: each sink takes up to 64 at a time, for the next elements in the tensor's memory.
#pragma once

#include "activation.h"
#include "block.h"
#include "queue.h"
#include "scalar.h"
#include "task.h"

namespace dropkit {
namespace {

// Bytes: a line of a cache, and how far ahead lines are asked for. Processors look ahead too, but not beyond a page, and
// the arithmetic of the mask hides what memory takes only if it is asked early.
constexpr int kLine = 64, kAhead = 2048;

template <bool kToWrite, class T>
inline void ask_ahead(const T* group) {
  for (int i = 0; i < kGroup; i += kLine / static_cast<int>(sizeof(T))) __builtin_prefetch(group + kAhead / sizeof(T) + i, kToWrite);
}

// A sink that multiplies what is kept.
template <class Isa, class T>
struct Scale {
  const T* input;
  T* output;
  const T* input_base;
  T* output_base;
  compute_t<T> scale;
  u64 *words, *words_base = nullptr;  // where the mask is kept as well, or null; rows are whole words then

  Scale(const void* from, void* to, double factor)
      : input_base(static_cast<const T*>(from)), output_base(static_cast<T*>(to)), scale(static_cast<compute_t<T>>(factor)) {
    move(0);
  }
  explicit Scale(const Task& task)
      : Scale(static_cast<const T*>(task.input) + task.offset, static_cast<T*>(task.output) + task.offset, task.scale) {
    if (task.words) words_base = task.words + task.offset / kGroup;
    move(0);
  }
  explicit Scale(const StoredTask& task) : Scale(task.input, task.output, task.scale) {}
  void move(i64 at) {
    input = input_base + at;
    output = output_base + at;
    if (words_base) words = words_base + at / kGroup;
  }
  void full(u64 keep) {
    if (words_base) *words++ = keep;
    ask_ahead<false>(input);
    ask_ahead<true>(output);
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

// A sink that scales and shifts what is kept, and puts a constant in the place of the rest.
template <class Isa, class T>
struct Affine {
  const T *input, *input_base;
  T *output, *output_base;
  compute_t<T> scale, shift, dropped;

  template <class AnyTask>
  Affine(const AnyTask& task, i64 offset)
      : input_base(static_cast<const T*>(task.input) + offset),
        output_base(static_cast<T*>(task.output) + offset),
        scale(static_cast<compute_t<T>>(task.scale)),
        shift(static_cast<compute_t<T>>(task.shift)),
        dropped(static_cast<compute_t<T>>(task.dropped)) {
    move(0);
  }
  explicit Affine(const Task& task) : Affine(task, task.offset) {}
  explicit Affine(const StoredTask& task) : Affine(task, 0) {}
  void move(i64 at) {
    input = input_base + at;
    output = output_base + at;
  }
  void full(u64 keep) {
    ask_ahead<false>(input);
    ask_ahead<true>(output);
    map(input, output, keep);
    input += kGroup;
    output += kGroup;
  }
  void partial(u64 keep, int count) {
    T from[kGroup] = {}, to[kGroup];
    std::memcpy(from, input, count * sizeof(T));
    map(from, to, keep);
    std::memcpy(output, to, count * sizeof(T));
    input += count;
    output += count;
  }
  void put(u64 keep, int count) { count == kGroup ? full(keep) : partial(keep, count); }
  void map(const T* from, T* to, u64 keep) const {
    Block<Isa, T> value;
    for (int i = 0; i < kGroup; i += value.kCount) {
      value.load(from + i);
      for (auto& part : value.part) {
        const auto chosen = value.chosen(keep >> i, static_cast<int>(&part - value.part));
        part = chosen ? part * scale + shift : all<typename Block<Isa, T>::V>(dropped);
      }
      value.store(to + i);
    }
  }
};

// A sink for whatever is computed of each element before it is kept or dropped, or after: in float32 or wider, and
// rounded once. `Step::run` maps a vector.
template <class Isa, class T, class Step>
struct Map {
  const T *input, *other, *bias;
  T* output;
  i64 at = 0, column = 0, columns;
  compute_t<T> scale;

  explicit Map(const Task& task)
      : input(static_cast<const T*>(task.input) + task.offset),
        other(task.other ? static_cast<const T*>(task.other) + task.offset : nullptr),
        bias(static_cast<const T*>(task.bias)),
        output(static_cast<T*>(task.output) + task.offset),
        columns(task.columns),
        scale(static_cast<compute_t<T>>(task.scale)) {}
  void move(i64 element) {
    at = element;
    column = element % columns;
  }
  void full(u64 keep) { put(keep, kGroup); }
  void partial(u64 keep, int count) { put(keep, count); }
  [[gnu::always_inline]] void put(u64 keep, int count) {
    T copied[4][kGroup];
    const T* values = input + at;
    const T* others = Step::kTakesOther ? other + at : nullptr;
    const T* shifts = bias ? next_bias(copied[0], count) : nullptr;
    T* found = output + at;
    ask_ahead<false>(values);
    if (Step::kTakesOther) ask_ahead<false>(others);
    ask_ahead<true>(found);
    if (count < kGroup) {
      values = copy(values, copied[1], count);
      if (Step::kTakesOther) others = copy(others, copied[2], count);
      found = copied[3];
    }
    Block<Isa, T> value, with{}, shift, result;
    for (int i = 0; i < kGroup; i += value.kCount) {
      value.load(values + i);
      if (shifts) shift.load(shifts + i);
      if (Step::kTakesOther) with.load(others + i);
      for (int part = 0; part < value.kParts; ++part) {
        if (shifts) (Step::kTakesOther ? with : value).part[part] += shift.part[part];
        const auto chosen = value.chosen(keep >> i, part);
        result.part[part] = Step::template run<Isa>(value.part[part], with.part[part], chosen, scale);
      }
      result.store(found + i);
    }
    if (count < kGroup) std::memcpy(output + at, found, count * sizeof(T));
    at += count;
  }
  static const T* copy(const T* from, T* to, int count) {
    std::memset(static_cast<void*>(to), 0, kGroup * sizeof(T));
    std::memcpy(to, from, count * sizeof(T));
    return to;
  }
  // The bias of the next elements: where it lies, or, at the end of a row, copied.
  const T* next_bias(T* copied, int count) {
    const i64 first = column;
    if (first + kGroup <= columns) {
      column = first + count < columns ? first + count : 0;
      return bias + first;
    }
    for (int i = 0; i < kGroup; ++i) {
      copied[i] = bias[column];
      if (++column == columns) column = 0;
    }
    return copied;
  }
};

struct AddStep {
  static constexpr bool kTakesOther = true;
  template <class Isa, class V, class Chosen>
  static V run(V value, V other, Chosen chosen, lane_t<V> scale) {
    return kept(value * scale, chosen) + other;
  }
};

template <class Activation>
struct ActivateStep {
  static constexpr bool kTakesOther = false;
  template <class Isa, class V, class Chosen>
  static V run(V value, V, Chosen chosen, lane_t<V> scale) {
    return kept(Activation::template value<Isa>(value) * scale, chosen);
  }
};

// The gradient of the above: `value` is the gradient of its result, `other` what it was computed of.
template <class Activation>
struct GradientStep {
  static constexpr bool kTakesOther = true;
  template <class Isa, class V, class Chosen>
  static V run(V value, V other, Chosen chosen, lane_t<V> scale) {
    return kept(value * Activation::template derivative<Isa>(other) * scale, chosen);
  }
};

// ReLU selects, as PyTorch's does: an infinite gradient times 0 would be NaN.
template <>
struct GradientStep<Relu> {
  static constexpr bool kTakesOther = true;
  template <class Isa, class V, class Chosen>
  static V run(V value, V other, Chosen chosen, lane_t<V> scale) {
    return kept(other <= 0 ? V{} : value * scale, chosen);
  }
};

// The gradient of ReLU and dropout, of which `other` is the result: what is 0 there was below 0, or dropped. As in PyTorch,
// a gradient that is not a number goes no further than any other.
struct ReluGradientStep {
  static constexpr bool kTakesOther = true;
  template <class Isa, class V, class Chosen>
  static V run(V value, V other, Chosen chosen, lane_t<V> scale) {
    return kept(value * scale, chosen & ~(other <= V{}));
  }
};

// A sink that stores bits, from any bit on. Words at the edge of two tasks may be written by two threads.
struct StoreBits {
  u64* words;
  i64 offset, at;

  explicit StoreBits(const Task& task) : words(static_cast<u64*>(task.output)), offset(task.offset), at(task.offset) {}
  void move(i64 element) { at = offset + element; }
  void put(u64 keep, int count) {
    const int skipped = static_cast<int>(at % kGroup);
    if (count == kGroup && skipped == 0) {
      words[at / kGroup] = keep;
    } else {
      __atomic_fetch_or(words + at / kGroup, keep << skipped, __ATOMIC_RELAXED);
      if (skipped + count > kGroup) __atomic_fetch_or(words + at / kGroup + 1, keep >> (kGroup - skipped), __ATOMIC_RELAXED);
    }
    at += count;
  }
};

// A sink that stores a byte an element, as PyTorch stores a bool.
template <class Isa>
struct StoreBytes {
  unsigned char *base, *output;

  explicit StoreBytes(const Task& task) : base(static_cast<unsigned char*>(task.output) + task.offset), output(base) {}
  void move(i64 at) { output = base + at; }
  void put(u64 keep, int count) {
    if (count == kGroup) {
      Isa::spread64(keep, output);
    } else {
      for (int i = 0; i < count; ++i) output[i] = keep >> i & 1;
    }
    output += count;
  }
};

// A sink behind a call: the loops are compiled once for all of them, which is most of what there is to compile. A call is
// for many words, for neither side keeps what it has in registers over one.
class AnySink {
 public:
  void move(i64 element) {
    flush();
    begin(element);
  }
  void full(u64 keep) {
    words_[filled_++] = keep;
    if (filled_ == kWords) flush();
  }
  void partial(u64 keep, int count) {  // the last before a move
    words_[filled_++] = keep;
    flush(count);
  }
  void flush(int last = kGroup) {
    if (filled_) take(words_, filled_, last);
    filled_ = 0;
  }

 protected:
  ~AnySink() = default;
  virtual void begin(i64 element) = 0;
  virtual void take(const u64* words, int count, int last) = 0;  // `last` of the bits of the last word

 private:
  static constexpr int kWords = 8;
  u64 words_[kWords];
  int filled_ = 0;
};

template <class Sink>
struct Behind final : AnySink {
  Sink sink;

  explicit Behind(const Task& task) : sink(task) {}
  void begin(i64 element) override { sink.move(element); }
  [[gnu::flatten]] void take(const u64* words, int count, int last) override {
    for (int i = 0; i < count; ++i) sink.put(words[i], i + 1 < count ? kGroup : last);
  }
};

}  // namespace
}  // namespace dropkit
