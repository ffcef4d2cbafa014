// Compares the fields of numbers, and says how exact normals are.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cases.h"
#include "fields.h"
#include "report.h"

namespace dropkit {
namespace {

// Fields of numbers, from both planes of every draw and from the second key's.
template <class T>
void check_fields(Type type, const Place& place, Task task, const std::vector<unsigned char>& bytes) {
  const i64 elements = static_cast<i64>(bytes.size());
  std::vector<i64> integers = untouched<i64>(elements);
  std::vector<T> uniforms = untouched<T>(elements), normals = uniforms;
  Place second = place;
  second.key = second_key(place.key);
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    if (bytes[at] == kPattern) continue;
    const i64 element = static_cast<i64>(at) - task.offset;
    const u32 draw = draw_at(place, element / task.columns, element % task.columns);
    integers[at] = draw;
    uniforms[at] = Uniform<T>::of(draw, 0);
    normals[at] = Normal<T>::of(draw, draw_at(second, element / task.columns, element % task.columns));
  }
  for (const Table* path : kPaths) {
    if (!path->is_supported()) continue;
    std::vector<i64> found_integers = untouched<i64>(elements);
    task.output = found_integers.data();
    path->fields.integers(task);
    expect(are_equal(found_integers, integers), path->name, "integers, " + text(place, task));
    std::vector<T> found = untouched<T>(elements);
    task.output = found.data();
    path->fields.uniform.of[type](task);
    expect(are_equal(found, uniforms), path->name, std::string("uniforms, ") + kTypeNames[type] + ", " + text(place, task));
    found = untouched<T>(elements);
    task.output = found.data();
    path->fields.normal.of[type](task);
    expect(are_equal(found, normals), path->name, std::string("normals, ") + kTypeNames[type] + ", " + text(place, task));
  }
}

// Every uniform of float32, and as many of float64, against the standard library: an error of the radius and one of the
// cosine make up that of a normal.
template <class F>
void check_normals(double allowed) {
  double radius_error = 0, cosine_error = 0, longest = 0;
  for (u64 i = 0; i < u64{1} << 32; i += 512) {
    const F x = uniform<F>(static_cast<u32>(i + below(512)));
    const double radius = std::sqrt(-2 * std::log(static_cast<double>(x)));
    const double cosine = std::cos(6.28318530717958647692 * static_cast<double>(x));
    longest = std::max(longest, radius);
    radius_error = std::max(radius_error, std::fabs(static_cast<double>(std::sqrt(squared_radius(x))) - radius));
    cosine_error = std::max(cosine_error, std::fabs(static_cast<double>(cosine_of_turns(x)) - cosine));
  }
  const double error = radius_error + longest * cosine_error;
  expect(error < allowed, "every path", "normals may be wrong by " + std::to_string(error / allowed) + " of what is allowed");
}

}  // namespace
}  // namespace dropkit
