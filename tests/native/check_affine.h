// Checks what scales and shifts what is kept, and what multiplies by Gaussian noise.
#pragma once

#include <string>
#include <vector>

#include "cases.h"
#include "fields.h"
#include "report.h"

extern "C" {
void dropkit_affine(std::int64_t type, const void* input, void* output, const std::int64_t* packed);
void dropkit_gaussian(std::int64_t type, const void* input, void* output, const std::int64_t* packed);
void dropkit_affine_by_bits(std::int64_t type, const void* input, void* output, const std::uint64_t* words, std::int64_t first_bit,
                            const double* map, std::int64_t rank, const std::int64_t* lengths, const std::int64_t* bit_steps);
}

namespace dropkit {
namespace {

double any_number() { return (static_cast<double>(below(4001)) - 2000) / 700; }

template <class T>
T moved(T value, bool keep, double scale, double shift, double dropped) {
  using F = compute_t<T>;
  return from_compute<T>(keep ? to_float(value) * static_cast<F>(scale) + static_cast<F>(shift) : static_cast<F>(dropped));
}

template <class T>
T noisy(T value, compute_t<T> normal, double scale) {
  return from_compute<T>(to_float(value) * (1 + static_cast<compute_t<T>>(scale) * normal));
}

// One task, whose mask is known as bytes.
template <class T>
void check_affine(Type type, const Place& place, Task task, const std::vector<unsigned char>& bytes) {
  const i64 elements = static_cast<i64>(bytes.size());
  const std::vector<T> input = any_values<T>(elements);
  std::vector<T> values = untouched<T>(elements), noise = values;
  task.input = input.data();
  task.scale = any_number();
  task.shift = any_number();
  task.dropped = any_number();
  Place second = place;
  second.key = second_key(place.key);
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    if (bytes[at] == kPattern) continue;
    const i64 element = static_cast<i64>(at) - task.offset, row = element / task.columns, column = element % task.columns;
    values[at] = moved(input[at], bytes[at], task.scale, task.shift, task.dropped);
    noise[at] = noisy(input[at], normal<compute_t<T>>(draw_at(place, row, column), draw_at(second, row, column)), task.scale);
  }
  for (const Table* path : kPaths) {
    if (!path->is_supported()) continue;
    std::vector<T> found = untouched<T>(elements);
    task.output = found.data();
    path->affine.of[type](task);
    expect(are_same_numbers(found, values), path->name, std::string("affine, ") + kTypeNames[type] + ", " + text(place, task));
    found = untouched<T>(elements);
    task.output = found.data();
    path->fields.gaussian.of[type](task);
    expect(are_same_numbers(found, noise), path->name, std::string("gaussian, ") + kTypeNames[type] + ", " + text(place, task));
  }
}

// A call, whose slices have numbers of their own if they have rates of their own.
template <class T>
struct AffineCall {
  std::vector<double> scales, shifts, dropped;
  std::vector<i64> packed;
  std::vector<T> input, values, noise;

  AffineCall(const i64* call, i64 step, const std::vector<Place>& places, const std::vector<T>& from) : packed(call, call + 13), input(from), values(from.size()), noise(from.size()) {
    for (std::size_t i = 0; i < places.size(); ++i) {
      scales.push_back(any_number());
      shifts.push_back(any_number());
      dropped.push_back(any_number());
    }
    for (const auto* numbers : {&scales, &shifts, &dropped}) packed.push_back(reinterpret_cast<i64>(numbers->data()));
    const i64 rows = packed[2], columns = packed[3];
    for (std::size_t at = 0; at < input.size(); ++at) {
      const i64 i = static_cast<i64>(at), slice = i / (rows * columns), row = i / columns % rows, column = i % columns;
      const Place& place = places[static_cast<std::size_t>(slice)];
      const auto own = static_cast<std::size_t>(slice * step);
      Place second = place;
      second.key = second_key(place.key);
      const u32 draw = draw_at(place, row, column);
      values[at] = moved(input[at], draw >= place.threshold, scales[own], shifts[own], dropped[own]);
      noise[at] = noisy(input[at], normal<compute_t<T>>(draw, draw_at(second, row, column)), scales[own]);
    }
  }
  void check(Type type, const char* path, const std::string& what) const {
    const i64 elements = static_cast<i64>(input.size());
    std::vector<T> found = untouched<T>(elements);
    dropkit_affine(type, input.data(), found.data(), packed.data());
    expect(are_same_numbers(found, values), path, "affine " + what);
    found = untouched<T>(elements);
    dropkit_gaussian(type, input.data(), found.data(), packed.data());
    expect(are_same_numbers(found, noise), path, "gaussian " + what);
  }
};

}  // namespace
}  // namespace dropkit
