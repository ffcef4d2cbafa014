// Checks the softmax of rows, and dropout of it.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "cases.h"
#include "report.h"

extern "C" {
int dropkit_use(const char* name);
void dropkit_set_parallel_for(void* loop);
void dropkit_softmax(std::int64_t type, const void* input, void* output, const std::int64_t* packed);
}

namespace dropkit {
namespace {

// Whether numbers are the softmax of a row, up to rounding: of differences from the largest, which may be large, and of
// sums of exponentials.
template <class T>
bool is_softmax(const T* row, const T* found, i64 columns) {
  double top = -INFINITY, sum = 0;
  bool is_defined = true;
  for (i64 i = 0; i < columns; ++i) {
    top = row[i] > top ? row[i] : top;
    is_defined = is_defined && row[i] == row[i];
  }
  is_defined = is_defined && std::isfinite(top);
  for (i64 i = 0; i < columns; ++i) sum += std::exp(row[i] - top);
  const double unit = sizeof(T) == 4 ? 6e-8 : 1.2e-16;
  for (i64 i = 0; i < columns; ++i) {
    if (!is_defined && found[i] == found[i]) return false;
    const double wanted = std::exp(row[i] - top) / sum;
    if (is_defined && !(std::abs(found[i] - wanted) <= (100 + columns) * unit * wanted + 1e-37)) return false;
  }
  return true;
}

template <class T>
void check_softmax(Type type, const void* threads) {
  const i64 slices = 1 + static_cast<i64>(below(3)), rows = 1 + static_cast<i64>(below(40)), columns = any_width();
  const i64 elements = slices * rows * columns;
  Place place = any_place(rows, columns);
  place.first_column = 0;
  std::vector<T> input = any_values<T>(elements), softmax(input.size()), dropped(input.size());
  if (below(2)) {
    for (T& value : input) value = static_cast<T>(static_cast<double>(below(1 << 16)) / 3000 - 10);
  }
  i64 packed[16] = {1, slices, rows, columns, static_cast<i64>(place.first_row), rows};
  u64 none = 0;
  const auto scale = static_cast<T>(place.threshold < kOne ? static_cast<double>(kOne) / static_cast<double>(kOne - place.threshold) : 1.0);
  packed[7] = reinterpret_cast<i64>(&place.key);
  packed[8] = reinterpret_cast<i64>(&place.stream);
  const std::string what = std::string("softmax, ") + kTypeNames[type] + ", " + std::to_string(rows) + " rows of " + std::to_string(columns);
  for (const Table* path : kPaths) {
    if (!path->is_supported()) continue;
    dropkit_use(path->name);
    dropkit_set_parallel_for(below(2) ? const_cast<void*>(threads) : nullptr);
    std::vector<T> found = untouched<T>(elements);
    packed[9] = reinterpret_cast<i64>(&none);
    dropkit_softmax(type, input.data(), found.data(), packed);
    if (path == kPaths[0]) {
      softmax = found;
      for (i64 row = 0; row < slices * rows; ++row) {
        expect(is_softmax(input.data() + row * columns, found.data() + row * columns, columns), path->name, what);
      }
      for (i64 i = 0; i < elements; ++i) {
        const auto at = static_cast<std::size_t>(i);
        dropped[at] = scaled(softmax[at], is_kept(place, i / columns, i % columns), scale);
      }
    }
    expect(are_same_numbers(found, softmax), path->name, what);
    found = input;
    packed[9] = reinterpret_cast<i64>(&place.threshold);
    dropkit_softmax(type, found.data(), found.data(), packed);
    expect(are_same_numbers(found, dropped), path->name, "dropout of " + what);
  }
}

}  // namespace
}  // namespace dropkit
