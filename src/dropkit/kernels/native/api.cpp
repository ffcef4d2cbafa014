// The C interface: which instruction set serves, and what Python calls.
#include <atomic>
#include <cstdint>
#include <cstring>

#include "call.h"
#include "task.h"

namespace dropkit {
namespace {

const Table* const kTables[] = {
#if defined(DROPKIT_X86)
    &kAvx512,
    &kAvx2,
#elif defined(DROPKIT_ARM)
    &kNeon,
#endif
    &kScalar,
};

const Table* best() {
  for (const Table* table : kTables) {
    if (table->is_supported()) return table;
  }
  return &kScalar;
}

std::atomic<const Table*> chosen{best()};

StoredCall by_bits(const void* input, void* output, const uint64_t* words, int64_t first_bit) {
  StoredCall call{};
  call.task.input = input;
  call.task.output = output;
  call.task.words = words;
  call.task.first_bit = first_bit;
  return call;
}

void run_all(StoredCall& call, int64_t rank, const int64_t* lengths, const int64_t* bit_steps) {
  const int64_t elements = call.divide(rank, lengths, bit_steps), units = call.units();
  if (elements > 0) for_each(units, elements / units, run_stored, &call);
}

void apply_bits(int64_t type, const void* input, void* output, const uint64_t* words, int64_t first_bit, uint64_t threshold, bool is_scaled, int64_t rank, const int64_t* lengths, const int64_t* bit_steps) {
  StoredCall call = by_bits(input, output, words, first_bit);
  call.task.scale = is_scaled ? scale_of(threshold) : 1.0;
  call.kernel = chosen.load()->apply_bits.of[type];
  run_all(call, rank, lengths, bit_steps);
}

void activate(int64_t type, int64_t activation, const void* bias, Call call) {
  call.bias = bias;
  call.kernel = chosen.load()->activate[activation].of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

void activate_gradient(int64_t type, int64_t activation, const void* input, const void* bias, Call call) {
  call.other = input;
  call.bias = bias;
  call.keeps_all = activation == kRelu;
  call.kernel = chosen.load()->activate_gradient[activation].of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

}  // namespace
}  // namespace dropkit

using namespace dropkit;

#if defined(_WIN32)
#define DROPKIT_EXPORT extern "C" __declspec(dllexport)
#else
#define DROPKIT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Name of the instruction set that serves.
DROPKIT_EXPORT const char* dropkit_kernel() { return chosen.load()->name; }

// Let another instruction set serve; 0 where this processor lacks it or the name is unknown.
DROPKIT_EXPORT int dropkit_use(const char* name) {
  for (const Table* table : kTables) {
    if (std::strcmp(table->name, name) == 0 && table->is_supported()) {
      chosen.store(table);
      return 1;
    }
  }
  return 0;
}

DROPKIT_EXPORT void dropkit_set_parallel_for(void* loop) { parallel_for.store(reinterpret_cast<ParallelFor>(loop)); }

// Dropout of a contiguous tensor.
DROPKIT_EXPORT void dropkit_dropout(int64_t type, const void* input, void* output, const int64_t* packed) {
  Call call = unpacked(input, output, packed);
  call.kernel = chosen.load()->dropout.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// The same for one key. It is called so often that each argument counts. `words` may be null; else it takes the mask, a
// bit an element, of rows that are whole words.
DROPKIT_EXPORT void dropkit_dropout_plain(int64_t type, const void* input, void* output, uint64_t* words, int64_t elements, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  Call call = under(address, input, output, elements, columns);
  call.words = words;
  call.kernel = chosen.load()->dropout.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// The same where what is kept is shifted too, and what is dropped becomes a constant; each slice may have its own numbers.
DROPKIT_EXPORT void dropkit_affine(int64_t type, const void* input, void* output, const int64_t* packed) {
  Call call = unpacked(input, output, packed);
  call.scales = numbers(packed[kScales]);
  call.shifts = numbers(packed[kShifts]);
  call.dropped = numbers(packed[kDropped]);
  call.kernel = chosen.load()->affine.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// A contiguous tensor times one plus multiples of normals.
DROPKIT_EXPORT void dropkit_gaussian(int64_t type, const void* input, void* output, const int64_t* packed) {
  Call call = unpacked(input, output, packed);
  call.scales = numbers(packed[kScales]);
  call.kernel = chosen.load()->fields.gaussian.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// A residual plus dropout of a contiguous tensor.
DROPKIT_EXPORT void dropkit_add(int64_t type, const void* input, const void* residual, void* output, int64_t elements, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  Call call = under(address, input, output, elements, columns);
  call.other = residual;
  call.kernel = chosen.load()->add.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// Dropout of activation(input + bias); `bias` may be null.
DROPKIT_EXPORT void dropkit_activate(int64_t type, int64_t activation, const void* input, const void* bias, void* output, int64_t elements, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  activate(type, activation, bias, under(address, input, output, elements, columns));
}

// The same for slices with addresses of their own.
DROPKIT_EXPORT void dropkit_activate_slices(int64_t type, int64_t activation, const void* input, const void* bias, void* output, const int64_t* packed) {
  activate(type, activation, bias, unpacked(input, output, packed));
}

// Its gradient with respect to the input, from that of the result; for ReLU `input` is the result, and `bias` null.
DROPKIT_EXPORT void dropkit_activate_gradient(int64_t type, int64_t activation, const void* gradient, const void* input, const void* bias, void* output, int64_t elements, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  activate_gradient(type, activation, input, bias, under(address, gradient, output, elements, columns));
}

// The same for slices with addresses of their own.
DROPKIT_EXPORT void dropkit_activate_gradient_slices(int64_t type, int64_t activation, const void* gradient, const void* input, const void* bias, void* output, const int64_t* packed) {
  activate_gradient(type, activation, input, bias, unpacked(gradient, output, packed));
}

// The softmax of each row, and dropout of it where there is a threshold. Of float32 and float64.
DROPKIT_EXPORT void dropkit_softmax(int64_t type, const void* input, void* output, const int64_t* packed) {
  Call call = unpacked(input, output, packed);
  call.has_whole_rows = true;
  call.kernel = chosen.load()->softmax.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// The mask alone, a bit an element in the order of memory, from a bit on; `words` must be zero before.
DROPKIT_EXPORT void dropkit_keep_bits(uint64_t* words, int64_t first, const int64_t* packed) {
  Call call = unpacked(nullptr, words, packed);
  call.offset = first;
  call.kernel = chosen.load()->keep_bits;
  run_all(call);
}

// The mask alone, a byte an element.
DROPKIT_EXPORT void dropkit_keep_bytes(void* bytes, const int64_t* packed) {
  Call call = unpacked(nullptr, bytes, packed);
  call.kernel = chosen.load()->keep_bytes;
  run_all(call);
}

// Fields of numbers: uniform integers as int64, uniforms and normals.
DROPKIT_EXPORT void dropkit_integers(void* output, const int64_t* packed) {
  Call call = unpacked(nullptr, output, packed);
  call.kernel = chosen.load()->fields.integers;
  call.element_size = sizeof(int64_t);
  run_all(call);
}

DROPKIT_EXPORT void dropkit_uniform(int64_t type, void* output, const int64_t* packed) {
  Call call = unpacked(nullptr, output, packed);
  call.kernel = chosen.load()->fields.uniform.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

DROPKIT_EXPORT void dropkit_normal(int64_t type, void* output, const int64_t* packed) {
  Call call = unpacked(nullptr, output, packed);
  call.kernel = chosen.load()->fields.normal.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// Dropout of a contiguous tensor by the bits of its mask.
DROPKIT_EXPORT void dropkit_apply_bits(int64_t type, const void* input, void* output, const uint64_t* words, int64_t elements, uint64_t threshold, int64_t is_scaled) {
  const int64_t bit_step = 1;
  apply_bits(type, input, output, words, 0, threshold, is_scaled, 1, &elements, &bit_step);
}

// The same of a tensor that is dense in memory: its axes as they lie there, from the outermost to the innermost, and how
// many bits apart neighbours are, 0 where they share one. One axis at least has a step of 1, or all have 0.
DROPKIT_EXPORT void dropkit_apply_bits_strided(int64_t type, const void* input, void* output, const uint64_t* words, int64_t first_bit, uint64_t threshold, int64_t is_scaled, int64_t rank, const int64_t* lengths, const int64_t* bit_steps) {
  apply_bits(type, input, output, words, first_bit, threshold, is_scaled, rank, lengths, bit_steps);
}

// The same where what is kept is shifted too, and what is dropped becomes a constant: `map` has the scale, what is added,
// and the constant.
DROPKIT_EXPORT void dropkit_affine_by_bits(int64_t type, const void* input, void* output, const uint64_t* words, int64_t first_bit, const double* map, int64_t rank, const int64_t* lengths, const int64_t* bit_steps) {
  StoredCall call = by_bits(input, output, words, first_bit);
  call.task.scale = map[0];
  call.task.shift = map[1];
  call.task.dropped = map[2];
  call.kernel = chosen.load()->affine_by_bits.of[type];
  run_all(call, rank, lengths, bit_steps);
}
