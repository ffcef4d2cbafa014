// What is compared, and what is said of a difference.
#pragma once

#include <cstdio>
#include <string>

#include "cases.h"
#include "task.h"

namespace dropkit {
namespace {

const char* const kTypeNames[kTypes] = {"float32", "float64", "float16", "bfloat16"};

const Table* const kPaths[] = {
    &kScalar,
#if defined(DROPKIT_X86)
    &kAvx2,
    &kAvx512,
#elif defined(DROPKIT_ARM)
    &kNeon,
#endif
};

int failures = 0;

void expect(bool holds, const char* path, const std::string& what) {
  if (holds || ++failures > 5) return;
  std::fprintf(stderr, "%s differs: %s\n", path, what.c_str());
}

std::string text(const Place& place, const Task& task) {
  char line[400];
  std::snprintf(line, sizeof line, "key %llu stream %llu threshold %llu row %llu column %llu, %lld columns, rows %lld..%lld, columns %lld..%lld",
                static_cast<unsigned long long>(place.key), static_cast<unsigned long long>(place.stream),
                static_cast<unsigned long long>(place.threshold), static_cast<unsigned long long>(place.first_row),
                static_cast<unsigned long long>(place.first_column), static_cast<long long>(task.columns),
                static_cast<long long>(task.row_begin), static_cast<long long>(task.row_end),
                static_cast<long long>(task.column_begin), static_cast<long long>(task.column_end));
  return line;
}

}  // namespace
}  // namespace dropkit
