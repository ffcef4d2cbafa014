// Random cases: addresses, rates and numbers, with those in which mistakes hide more often than they would come.
#pragma once

#include <random>
#include <vector>

#include "scalar.h"

namespace dropkit {
namespace {

constexpr unsigned char kPattern = 0xA5;
constexpr u64 kOne = u64{1} << 32;
constexpr u64 kLastColumn = (u64{1} << 34) - 1;

std::mt19937_64 generator;
u64 below(u64 end) { return generator() % end; }

template <class Values>
auto any_of(const Values& values) {
  return values[below(std::size(values))];
}

// Where one slice stands.
struct Place {
  u64 key, stream, threshold, first_row, first_column;
};

// The definition itself, without a shortcut.
u32 draw_at(const Place& place, i64 row, i64 column) {
  const Key key(place.key, static_cast<u32>(place.stream));
  const u64 at_row = place.first_row + static_cast<u64>(row), at_column = place.first_column + static_cast<u64>(column);
  return half_at(key, at_row, at_column, 0) << 16 | half_at(key, at_row, at_column, 1);
}

bool is_kept(const Place& place, i64 row, i64 column) { return draw_at(place, row, column) >= place.threshold; }

i64 any_width() {
  static const int widths[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 31, 32, 33, 63, 64, 65, 66, 100, 127, 128, 129, 130, 257, 512, 1000};
  return below(4) ? any_of(widths) : 1 + static_cast<i64>(below(5000));
}

// A threshold that is often an end of the range, and more often the very draw of an element or next to it: a tie.
u64 any_threshold(Place place, i64 rows, i64 columns) {
  static const u64 common[] = {0, 1, 4295, 429496730, 1431655765, u64{1} << 31, 3865470566, kOne - 1, kOne, 0x55550000};
  if (below(2)) return any_of(common);
  const Key key(place.key, static_cast<u32>(place.stream));
  const u64 row = place.first_row + below(rows), column = place.first_column + below(columns);
  return (u64{half_at(key, row, column, 0)} << 16 | half_at(key, row, column, 1)) + below(2);
}

Place any_place(i64 rows, i64 columns) {
  static const u64 starts[] = {0, 1, kOne - 3, (u64{1} << 63) - 2, u64{1} << 63, ~u64{0} - 40};
  Place place{};
  place.key = generator();
  place.stream = below(3) ? below(2) : below(u64{1} << 30);
  place.first_row = any_of(starts) + (below(2) ? 0 : below(100));
  switch (below(4)) {
    case 0: place.first_column = below(200); break;
    case 1: place.first_column = kLastColumn + 1 - static_cast<u64>(columns); break;
    case 2: place.first_column = below(kLastColumn + 2 - static_cast<u64>(columns)); break;
    default: break;
  }
  place.threshold = any_threshold(place, rows, columns);
  return place;
}

template <class T>
std::vector<T> any_values(i64 count) {
  static const float special[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 6e-8f, 6e-5f, 65504.0f, 65520.0f, 3.4e38f, 1.0f / 0.0f, -1.0f / 0.0f, 0.0f / 0.0f};
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) {
    const u64 bits = generator();
    std::memcpy(&value, &bits, sizeof value);  // NaN of every kind among them
    if (below(4) == 0) value = from_float<T>(any_of(special));
    if (below(2)) value = from_float<T>(static_cast<float>(static_cast<int>(below(1 << 16)) - (1 << 15)) / 5000);
  }
  return values;
}

template <>
std::vector<double> any_values<double>(i64 count) {
  std::vector<double> values(static_cast<std::size_t>(count));
  for (double& value : values) {
    const u64 bits = below(8) ? generator() : generator() & ~(u64{0x7FF} << 52);  // one in eight is subnormal
    std::memcpy(&value, &bits, sizeof value);
    if (below(2)) value = (static_cast<double>(below(1 << 16)) - (1 << 15)) / 5000;
  }
  return values;
}

template <class T>
std::vector<T> untouched(i64 count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  if (count) std::memset(static_cast<void*>(values.data()), kPattern, values.size() * sizeof(T));
  return values;
}

template <class T>
bool are_equal(const std::vector<T>& first, const std::vector<T>& second) {
  return first.empty() || std::memcmp(first.data(), second.data(), first.size() * sizeof(T)) == 0;
}

// Equal where NaN equals NaN: which of two becomes that of a sum is for the compiler to say.
template <class T>
bool are_same_numbers(const std::vector<T>& first, const std::vector<T>& second) {
  for (std::size_t i = 0; i < first.size(); ++i) {
    const auto one = to_float(first[i]), other = to_float(second[i]);
    if (std::memcmp(&first[i], &second[i], sizeof(T)) != 0 && (one == one || other == other)) return false;
  }
  return true;
}

}  // namespace
}  // namespace dropkit
