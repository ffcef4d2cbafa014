// What the instruction sets are asked to do, and the table in which each offers it.
#pragma once

#include <cstdint>

namespace dropkit {

// A part of one slice: rows row_begin .. row_end of columns column_begin .. column_end, in a contiguous tensor.
struct Task {
  const void* input;
  void* output;
  const void* other;  // a residual of the input's shape, or the input where that is a gradient
  const void* bias;   // one number a column, or null
  std::uint64_t* words;  // where to keep the mask as bits, or null
  std::uint64_t key, stream, threshold, first_row, first_column;
  std::int64_t offset;  // elements of the tensor before the slice
  std::int64_t columns, row_begin, row_end, column_begin, column_end;
  double scale, shift, dropped;  // what is kept is scaled, or also shifted, and what is not becomes 0, or a constant
};

// An axis of a tensor that is dense in memory: how far apart the bits and the elements of neighbours are.
struct Axis {
  std::int64_t length, bit_step, stride;
};
constexpr int kMaxRank = 32;

// A part of a tensor to which a mask drawn before applies. Its units, begin .. end, are numbered along `axes`, the last of
// which counts the segments of an axis: of `inner`, or where that one has no neighbouring bits of `across`, which has.
struct StoredTask {
  const void* input;
  void* output;
  const std::uint64_t* words;
  std::int64_t first_bit;
  double scale, shift, dropped;
  Axis axes[kMaxRank];
  int rank;
  Axis inner, across;
  std::int64_t segment;
  std::int64_t begin, end;
};

enum Type { kFloat32, kFloat64, kFloat16, kBFloat16, kTypes };
enum Activation { kRelu, kGelu, kGeluTanh, kSilu, kActivations };

using Kernel = void (*)(const Task&);
struct Kernels {
  Kernel of[kTypes];
};
using StoredKernel = void (*)(const StoredTask&);
struct StoredKernels {
  StoredKernel of[kTypes];
};

struct Fields {
  Kernel integers;          // to int64
  Kernels uniform, normal;
  Kernels gaussian;         // the input times one plus a multiple of a normal
};

struct Table {
  const char* name;
  bool (*is_supported)();
  Kernels dropout;                            // of the input
  StoredKernels apply_bits;                   // the same by a mask drawn before
  Kernels affine;                             // of the input, shifted, to a constant
  StoredKernels affine_by_bits;               // the same by a mask drawn before
  Kernels add;                                // the residual added to it
  Kernels activate[kActivations];             // of the activation of input + bias
  Kernels activate_gradient[kActivations];    // the gradient of that, with respect to its input
  Kernels softmax;                            // of the softmax of each row; of float32 and float64
  Kernel keep_bits;                           // the mask to packed bits, which must be zero before
  Kernel keep_bytes;                          // the mask to a byte an element
  Fields fields;
};

extern const Table kScalar, kAvx2, kAvx512, kNeon;

}  // namespace dropkit
