// What the instruction sets are asked to do, and the table in which each offers it.
#pragma once

#include <cstdint>

namespace dropkit {

// A part of one slice: rows row_begin .. row_end of columns column_begin .. column_end, in a contiguous tensor.
struct Task {
  const void* input;
  void* output;
  std::uint64_t key, stream, threshold, first_row, first_column;
  std::int64_t offset;  // elements of the tensor before the slice
  std::int64_t columns, row_begin, row_end, column_begin, column_end;
  double scale;
};

enum Type { kFloat32, kFloat64, kFloat16, kBFloat16, kTypes };

struct Table {
  const char* name;
  bool (*is_supported)();
  void (*dropout[kTypes])(const Task&);     // input to output
  void (*apply_bits[kTypes])(const Task&);  // the same with the mask of `key`, a pointer to packed bits
  void (*keep_bits)(const Task&);           // to packed bits, which must be zero before
  void (*keep_bytes)(const Task&);          // to a byte an element
};

extern const Table kScalar, kAvx2, kAvx512, kNeon;

}  // namespace dropkit
