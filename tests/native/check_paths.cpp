// Compares every instruction set of a build with the mask definition, an element at a time, over random cases.
//
// It stands alone, so that it runs where Python does not: under sanitizers and under emulation. Buffers have exactly the
// size that a case needs, and outputs start as a pattern that shows what was written without being asked for.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "activation.h"
#include "cases.h"
#include "check_affine.h"
#include "check_fields.h"
#include "check_softmax.h"
#include "report.h"
#include "task.h"

extern "C" {
const char* dropkit_kernel();
int dropkit_use(const char* name);
void dropkit_set_parallel_for(void* loop);
void dropkit_dropout(std::int64_t type, const void* input, void* output, const std::int64_t* packed);
void dropkit_dropout_plain(std::int64_t type, const void* input, void* output, std::uint64_t* words, std::int64_t elements, std::int64_t columns,
                           std::uint64_t key, std::uint64_t threshold);
void dropkit_keep_bits(std::uint64_t* words, std::int64_t first, const std::int64_t* packed);
void dropkit_keep_bytes(void* bytes, const std::int64_t* packed);
void dropkit_integers(void* output, const std::int64_t* packed);
void dropkit_uniform(std::int64_t type, void* output, const std::int64_t* packed);
void dropkit_normal(std::int64_t type, void* output, const std::int64_t* packed);
void dropkit_apply_bits(std::int64_t type, const void* input, void* output, const std::uint64_t* words, std::int64_t elements,
                        std::uint64_t threshold, std::int64_t is_scaled);
void dropkit_apply_bits_strided(std::int64_t type, const void* input, void* output, const std::uint64_t* words, std::int64_t first_bit,
                                std::uint64_t threshold, std::int64_t is_scaled, std::int64_t rank, const std::int64_t* lengths, const std::int64_t* bit_steps);
}

namespace dropkit {
namespace {

// Of one number, as the scalar path computes them.
template <class Function, class F>
F value_of(F number) {
  VectorOf<F, 16> z{};
  z[0] = number;
  return Function::template value<scalar::Isa>(z)[0];
}

// A gradient on its way back through an activation; through ReLU by way of its result.
template <class Function, class F>
F gradient_of(F gradient, F number) {
  if constexpr (std::is_same_v<Function, Relu>) {
    return number <= 0 ? 0 : gradient;
  } else {
    VectorOf<F, 16> z{};
    z[0] = number;
    return gradient * Function::template derivative<scalar::Isa>(z)[0];
  }
}

// The operations that combine dropout with another, from the mask as bytes.
template <class T, class Function>
void check_fused(Type type, Activation activation, Task task, const std::vector<unsigned char>& bytes, const std::string& what) {
  using F = compute_t<T>;
  const i64 elements = static_cast<i64>(bytes.size());
  const std::vector<T> input = any_values<T>(elements), other = any_values<T>(elements), bias = any_values<T>(task.columns);
  const bool has_bias = below(2);
  const F scale = static_cast<F>(task.scale);
  std::vector<T> added = untouched<T>(elements), activated = added, gradient = added;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    if (bytes[at] == kPattern) continue;
    const auto column = static_cast<std::size_t>((static_cast<i64>(at) - task.offset) % task.columns);
    const F value = to_float(input[at]), with = to_float(other[at]), shift = has_bias ? to_float(bias[column]) : 0;
    added[at] = from_compute<T>((bytes[at] ? value * scale : 0) + with);
    activated[at] = from_compute<T>(bytes[at] ? value_of<Function>(has_bias ? value + shift : value) * scale : 0);
    gradient[at] = from_compute<T>(bytes[at] ? gradient_of<Function>(value, has_bias ? with + shift : with) * scale : 0);
  }
  task.input = input.data();
  for (const Table* path : kPaths) {
    if (!path->is_supported()) continue;
    std::vector<T> found = untouched<T>(elements);
    task.output = found.data();
    task.bias = nullptr;
    task.other = other.data();
    path->add.of[type](task);
    expect(are_same_numbers(found, added), path->name, "add, " + what);
    task.bias = has_bias ? bias.data() : nullptr;
    found = untouched<T>(elements);
    task.output = found.data();
    path->activate_gradient[activation].of[type](task);
    expect(are_same_numbers(found, gradient), path->name, "gradient of activation " + std::to_string(activation) + ", " + what);
    task.other = nullptr;
    found = untouched<T>(elements);
    task.output = found.data();
    path->activate[activation].of[type](task);
    expect(are_same_numbers(found, activated), path->name, "activation " + std::to_string(activation) + ", " + what);
  }
}

// One task: a part of a slice, at an offset in its tensor.
template <class T>
void check_task(Type type) {
  Task task{};
  task.columns = any_width();
  const i64 rows = 1 + static_cast<i64>(below(static_cast<u64>(task.columns < 100 ? 60 : 5)));
  const Place place = any_place(rows, task.columns);
  task.key = place.key;
  task.stream = place.stream;
  task.threshold = place.threshold;
  task.first_row = place.first_row;
  task.first_column = place.first_column;
  task.offset = below(2) ? 0 : static_cast<i64>(below(150));
  task.row_end = rows;
  task.column_end = task.columns;
  if (below(2)) {
    task.row_begin = static_cast<i64>(below(static_cast<u64>(rows)));
    task.row_end = task.row_begin + static_cast<i64>(below(static_cast<u64>(rows - task.row_begin + 1)));
  }
  if (below(2)) {
    task.column_begin = static_cast<i64>(below(static_cast<u64>(task.columns)));
    task.column_end = task.column_begin + static_cast<i64>(below(static_cast<u64>(task.columns - task.column_begin + 1)));
  }
  task.scale = below(3) ? 4294967296.0 / static_cast<double>(place.threshold < kOne ? kOne - place.threshold : kOne) : 1.0;

  const i64 elements = task.offset + rows * task.columns;
  const std::vector<T> input = any_values<T>(elements);
  std::vector<T> values = untouched<T>(elements);
  std::vector<unsigned char> bytes = untouched<unsigned char>(elements);
  std::vector<u64> words(static_cast<std::size_t>((elements + 63) / 64));
  for (i64 row = task.row_begin; row < task.row_end; ++row) {
    for (i64 column = task.column_begin; column < task.column_end; ++column) {
      const auto at = static_cast<std::size_t>(task.offset + row * task.columns + column);
      const bool keep = is_kept(place, row, column);
      values[at] = scaled(input[at], keep, static_cast<compute_t<T>>(task.scale));
      bytes[at] = keep;
      words[at / 64] |= u64{keep} << (at % 64);
    }
  }

  for (const Table* path : kPaths) {
    if (!path->is_supported()) continue;
    std::vector<T> found = untouched<T>(elements);
    task.input = input.data();
    task.output = found.data();
    path->dropout.of[type](task);
    expect(are_equal(found, values), path->name, std::string("dropout, ") + kTypeNames[type] + ", " + text(place, task));

    std::vector<T> in_place = input, wanted = input;
    for (std::size_t at = 0; at < wanted.size(); ++at) {
      if (bytes[at] != kPattern) wanted[at] = values[at];
    }
    task.input = task.output = in_place.data();
    path->dropout.of[type](task);
    expect(are_equal(in_place, wanted), path->name, std::string("dropout in place, ") + kTypeNames[type] + ", " + text(place, task));

    std::vector<u64> found_words(words.size());
    task.output = found_words.data();
    path->keep_bits(task);
    expect(found_words == words, path->name, "bits, " + text(place, task));

    std::vector<unsigned char> found_bytes = untouched<unsigned char>(elements);
    task.output = found_bytes.data();
    path->keep_bytes(task);
    expect(found_bytes == bytes, path->name, "bytes, " + text(place, task));
  }

  check_fields<T>(type, place, task, bytes);
  check_affine<T>(type, place, task, bytes);
  const std::string what = std::string(kTypeNames[type]) + ", " + text(place, task);
  switch (below(kActivations)) {
    case kRelu: return check_fused<T, Relu>(type, kRelu, task, bytes, what);
    case kGelu: return check_fused<T, Gelu>(type, kGelu, task, bytes, what);
    case kGeluTanh: return check_fused<T, GeluTanh>(type, kGeluTanh, task, bytes, what);
    default: return check_fused<T, Silu>(type, kSilu, task, bytes, what);
  }
}

// Every number of a half type under several scales, where all are kept and where every other one is.
template <class T>
void check_all_halves(Type type) {
  std::vector<T> input(1 << 16);
  for (std::size_t i = 0; i < input.size(); ++i) input[i].bits = static_cast<u16>(i);
  std::vector<u64> words(input.size() / 64);
  for (const float scale : {1.0f, 4294967296.0f / 3865470566.0f, 1.5f, 2.0f, 10.0f, 4294967296.0f}) {
    for (const u64 pattern : {~u64{0}, u64{0x5555555555555555}, u64{0}}) {
      words.assign(words.size(), pattern);
      std::vector<T> values(input.size());
      for (std::size_t i = 0; i < input.size(); ++i) values[i] = scaled(input[i], pattern >> (i % 64) & 1, scale);
      for (const Table* path : kPaths) {
        if (!path->is_supported()) continue;
        std::vector<T> found = untouched<T>(static_cast<i64>(input.size()));
        StoredTask task{};
        task.input = input.data();
        task.output = found.data();
        task.words = words.data();
        task.scale = scale;
        task.rank = 1;
        task.axes[0] = {1, 0, 0};
        task.inner = {static_cast<i64>(input.size()), 1, 1};
        task.segment = task.inner.length;
        task.end = 1;
        path->apply_bits.of[type](task);
        expect(are_equal(found, values), path->name, std::string("all numbers of ") + kTypeNames[type] + " times " + std::to_string(scale));
      }
    }
  }
}

using Body = void (*)(std::int64_t begin, std::int64_t end, void* context);

// A loop over threads with the signature of PyTorch's.
int in_threads(std::int64_t begin, std::int64_t end, std::int64_t grain, Body body, void* context) {
  const std::int64_t parts = 3, at_least = (end - begin + parts - 1) / parts, step = at_least > grain ? at_least : grain;
  std::vector<std::thread> threads;
  for (std::int64_t at = begin; at < end; at += step) threads.emplace_back(body, at, at + step < end ? at + step : end, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

// A loop that could not start its threads.
int in_vain(std::int64_t, std::int64_t, std::int64_t, Body, void*) { return 1; }

// A call from Python: slices with addresses of their own, divided among threads.
template <class T>
void check_call(Type type) {
  const bool is_long = below(4) == 0;
  const i64 columns = is_long ? 30'000 + static_cast<i64>(below(20'000)) : any_width();
  const i64 rows = is_long ? static_cast<i64>(below(3)) : static_cast<i64>(below(static_cast<u64>(40'000 / columns + 1)));
  const bool is_plain = below(4) == 0;
  const i64 slices = is_plain ? 1 : static_cast<i64>(below(4));
  const bool has_rows = rows > 0 && slices > 0;
  std::vector<u64> keys, streams, thresholds;
  std::vector<Place> places;
  Place first = any_place(has_rows ? rows : 1, columns);
  if (is_plain) first.stream = first.first_row = first.first_column = 0;
  const u64 row_step = any_of(std::vector<u64>{0, 1, static_cast<u64>(rows), u64{1} << 32, u64{1} << 63});
  i64 steps[3];
  for (i64& step : steps) step = is_plain ? 0 : static_cast<i64>(below(2));
  for (i64 slice = 0; slice < (slices ? slices : 1); ++slice) {
    Place place = any_place(has_rows ? rows : 1, columns);
    place.first_row = first.first_row + static_cast<u64>(slice) * row_step;
    place.first_column = first.first_column;
    if (steps[0] == 0) place.key = first.key;
    if (steps[1] == 0) place.stream = first.stream;
    place.threshold = steps[2] == 0 ? first.threshold : any_threshold(place, has_rows ? rows : 1, columns);
    keys.push_back(place.key);
    streams.push_back(place.stream);
    thresholds.push_back(place.threshold);
    places.push_back(place);
  }
  const bool is_scaled = is_plain || below(4) != 0;
  const i64 packed[] = {
      is_scaled, slices, rows, columns, static_cast<i64>(first.first_row), static_cast<i64>(row_step), static_cast<i64>(first.first_column),
      reinterpret_cast<i64>(keys.data()), reinterpret_cast<i64>(streams.data()), reinterpret_cast<i64>(thresholds.data()),
      steps[0], steps[1], steps[2],
  };
  const i64 elements = slices * rows * columns;
  const std::vector<T> input = any_values<T>(elements);
  std::vector<T> values = untouched<T>(elements);
  std::vector<unsigned char> bytes(static_cast<std::size_t>(elements));
  std::vector<u64> words(static_cast<std::size_t>((elements + 63) / 64));
  std::vector<i64> integers(static_cast<std::size_t>(elements));
  std::vector<T> uniforms = values, normals = values;
  for (i64 at = 0; at < elements; ++at) {
    const Place& place = places[static_cast<std::size_t>(at / (rows * columns))];
    Place second = place;
    second.key = second_key(place.key);
    const u32 draw = draw_at(place, at / columns % rows, at % columns);
    const bool keep = draw >= place.threshold;
    const u64 kept = kOne - place.threshold;
    const double scale = is_scaled && kept ? 4294967296.0 / static_cast<double>(kept) : 1.0;
    const auto i = static_cast<std::size_t>(at);
    values[i] = scaled(input[i], keep, static_cast<compute_t<T>>(scale));
    bytes[i] = keep;
    words[i / 64] |= u64{keep} << (at % 64);
    integers[i] = draw;
    uniforms[i] = Uniform<T>::of(draw, 0);
    normals[i] = Normal<T>::of(draw, draw_at(second, at / columns % rows, at % columns));
  }
  const Place& only = places[0];
  const AffineCall<T> affine(packed, steps[2], places, input);

  char what[200];
  std::snprintf(what, sizeof what, "call, %s, %lld slices of %lld rows of %lld columns", kTypeNames[type], static_cast<long long>(slices),
                static_cast<long long>(rows), static_cast<long long>(columns));
  for (const Table* path : kPaths) {
    if (!path->is_supported()) continue;
    expect(dropkit_use(path->name) && path->name == std::string(dropkit_kernel()), path->name, "it does not serve when asked to");
    for (const auto loop : {static_cast<decltype(&in_threads)>(nullptr), &in_threads, &in_vain}) {
      dropkit_set_parallel_for(reinterpret_cast<void*>(loop));
      std::vector<T> found = untouched<T>(elements);
      dropkit_dropout(type, input.data(), found.data(), packed);
      expect(are_equal(found, values), path->name, what);
      if (is_plain) {
        found = untouched<T>(elements);
        std::vector<u64> kept(words.size());
        const bool keeps = columns % 64 == 0;
        dropkit_dropout_plain(type, input.data(), found.data(), keeps ? kept.data() : nullptr, rows * columns, columns, only.key, only.threshold);
        expect(are_equal(found, values), path->name, std::string("plain ") + what);
        expect(!keeps || kept == words, path->name, std::string("bits kept of a plain ") + what);
      }
      std::vector<u64> found_words(words.size());
      dropkit_keep_bits(found_words.data(), 0, packed);
      expect(found_words == words, path->name, std::string("bits of a ") + what);
      const i64 first = static_cast<i64>(below(200));
      std::vector<u64> shifted(static_cast<std::size_t>((first + elements + 63) / 64)), wanted(shifted.size());
      dropkit_keep_bits(shifted.data(), first, packed);
      for (i64 at = 0; at < elements; ++at) wanted[static_cast<std::size_t>((first + at) / 64)] |= u64{bytes[static_cast<std::size_t>(at)]} << ((first + at) % 64);
      expect(shifted == wanted, path->name, std::string("bits from any bit on of a ") + what);
      std::vector<unsigned char> found_bytes = untouched<unsigned char>(elements);
      dropkit_keep_bytes(found_bytes.data(), packed);
      expect(found_bytes == bytes, path->name, std::string("bytes of a ") + what);
      std::vector<i64> found_integers = untouched<i64>(elements);
      dropkit_integers(found_integers.data(), packed);
      expect(found_integers == integers, path->name, std::string("integers of a ") + what);
      found = untouched<T>(elements);
      dropkit_uniform(type, found.data(), packed);
      expect(are_equal(found, uniforms), path->name, std::string("uniforms of a ") + what);
      found = untouched<T>(elements);
      dropkit_normal(type, found.data(), packed);
      expect(are_equal(found, normals), path->name, std::string("normals of a ") + what);
      affine.check(type, path->name, what);
      if (steps[2] == 0) {
        found = untouched<T>(elements);
        dropkit_apply_bits(type, input.data(), found.data(), words.data(), elements, only.threshold, is_scaled);
        expect(are_equal(found, values), path->name, std::string("bits applied in a ") + what);
      }
    }
  }
}

// A mask of random bits, applied to a tensor whose axes lie in memory in any order, and some of which share draws.
template <class T>
void check_strided(Type type) {
  const int rank = 1 + static_cast<int>(below(4));
  std::vector<i64> lengths, mask_steps(static_cast<std::size_t>(rank)), order;
  i64 elements = 1, places = 1;
  for (int axis = 0; axis < rank; ++axis) {
    lengths.push_back(any_of(std::vector<i64>{1, 2, 3, 7, 63, 64, 65, 130, 600}));
    if (elements * lengths.back() > 60'000) lengths.back() = 2;
    elements *= lengths.back();
    order.push_back(axis);
  }
  for (int axis = rank; axis-- > 0;) {  // in a mask, the last axis has neighbouring bits
    const auto a = static_cast<std::size_t>(axis);
    const bool is_shared = lengths[a] == 1 || below(3) == 0;
    mask_steps[a] = is_shared ? 0 : places;
    if (!is_shared) places *= lengths[a];
  }
  std::shuffle(order.begin(), order.end(), generator);
  std::vector<i64> in_memory, steps;
  for (const i64 axis : order) {
    in_memory.push_back(lengths[static_cast<std::size_t>(axis)]);
    steps.push_back(mask_steps[static_cast<std::size_t>(axis)]);
  }
  const i64 first = static_cast<i64>(below(130));
  std::vector<u64> words(static_cast<std::size_t>((first + places + 63) / 64));
  for (u64& word : words) word = generator();
  const u64 threshold = below(kOne);
  const auto scale = static_cast<compute_t<T>>(4294967296.0 / static_cast<double>(kOne - threshold));
  const std::vector<T> input = any_values<T>(elements);
  const double map[] = {any_number(), any_number(), any_number()};
  std::vector<T> values(input.size()), mapped(input.size());
  for (i64 at = 0; at < elements; ++at) {
    i64 left = at, bit = first;
    for (int axis = rank; axis-- > 0;) {
      const auto a = static_cast<std::size_t>(axis);
      bit += left % in_memory[a] * steps[a];
      left /= in_memory[a];
    }
    const auto i = static_cast<std::size_t>(at);
    const bool keep = words[static_cast<std::size_t>(bit / 64)] >> (bit % 64) & 1;
    values[i] = scaled(input[i], keep, scale);
    mapped[i] = moved(input[i], keep, map[0], map[1], map[2]);
  }
  std::string what = std::string("bits applied along axes, ") + kTypeNames[type];
  for (int axis = 0; axis < rank; ++axis) {
    const auto a = static_cast<std::size_t>(axis);
    what += " " + std::to_string(in_memory[a]) + "/" + std::to_string(steps[a]);
  }
  for (const Table* path : kPaths) {
    if (!path->is_supported()) continue;
    expect(dropkit_use(path->name), path->name, "it does not serve when asked to");
    for (const auto loop : {static_cast<decltype(&in_threads)>(nullptr), &in_threads}) {
      dropkit_set_parallel_for(reinterpret_cast<void*>(loop));
      std::vector<T> found = untouched<T>(elements);
      dropkit_apply_bits_strided(type, input.data(), found.data(), words.data(), first, threshold, 1, rank, in_memory.data(), steps.data());
      expect(are_equal(found, values), path->name, what);
      found = untouched<T>(elements);
      dropkit_affine_by_bits(type, input.data(), found.data(), words.data(), first, map, rank, in_memory.data(), steps.data());
      expect(are_same_numbers(found, mapped), path->name, "affine " + what);
    }
  }
}

template <class T>
void check_type(Type type, int cases) {
  for (int i = 0; i < cases; ++i) check_task<T>(type);
  for (int i = 0; i < cases / 2; ++i) check_strided<T>(type);
  for (int i = 0; i < cases / 4; ++i) check_call<T>(type);
  if constexpr (std::is_floating_point_v<T>) {
    for (int i = 0; i < cases / 4; ++i) check_softmax<T>(type, reinterpret_cast<const void*>(&in_threads));
  }
}

}  // namespace
}  // namespace dropkit

// check_paths [CASES [SEED]]
int main(int count, char** arguments) {
  using namespace dropkit;
  const int cases = count > 1 ? std::atoi(arguments[1]) : 400;
  const int seed = count > 2 ? std::atoi(arguments[2]) : 1;
  generator.seed(static_cast<u64>(seed));
  check_type<float>(kFloat32, cases);
  check_type<double>(kFloat64, cases);
  check_type<Float16>(kFloat16, cases);
  check_type<BFloat16>(kBFloat16, cases);
  check_all_halves<Float16>(kFloat16);
  check_all_halves<BFloat16>(kBFloat16);
  check_normals<float>(1.7e-6);
  check_normals<double>(1e-14);
  std::printf("seed %d, %d cases a type:", seed, cases);
  for (const Table* path : kPaths) std::printf(" %s%s", path->name, path->is_supported() ? "" : " (not on this processor)");
  std::printf("; %d differences\n", failures);
  return failures ? 1 : 0;
}
