// The C interface: which instruction set serves, how work is divided among threads, and what Python calls.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "task.h"

namespace dropkit {
namespace {

using std::int64_t;
using std::uint64_t;

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

// PyTorch's own loop over its own threads, handed over as a pointer: a second pool would fight with it for the cores.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);
std::atomic<ParallelFor> parallel_for{nullptr};

constexpr int64_t kGrain = 1 << 14;  // elements: fewer cost less than waking a thread

void for_each(int64_t units, int64_t elements, Body body, void* context) {
  const ParallelFor loop = parallel_for.load(std::memory_order_relaxed);
  if (loop == nullptr || units < 2 || units * elements <= kGrain) {
    body(0, units, context);
  } else {
    const int64_t grain = elements < kGrain ? kGrain / elements : 1;
    if (loop(0, units, grain, body, context) != 0) body(0, units, context);
  }
}

// A process gets new memory page by page, by an interrupt each. To ask for the pages of a part at once, just before it is
// written, takes a fifth off what a copy to new memory costs.
struct Pages {
  static constexpr uint64_t kSize = 4096, kWorthwhile = uint64_t{1} << 20;  // bytes

#if defined(__linux__)
  static bool are_new(char* memory, uint64_t bytes) {
    unsigned char is_there = 1;
    char* last = reinterpret_cast<char*>((reinterpret_cast<uint64_t>(memory) + bytes) / kSize * kSize - kSize);
    return bytes >= kWorthwhile && mincore(last, kSize, &is_there) == 0 && !(is_there & 1);
  }
  static void ask_for(char* memory, uint64_t bytes) {
    constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE of Linux 5.14; older ones refuse, which does no harm
    const uint64_t begin = (reinterpret_cast<uint64_t>(memory) + kSize - 1) / kSize * kSize;
    const uint64_t end = (reinterpret_cast<uint64_t>(memory) + bytes) / kSize * kSize;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, kPopulateWrite);
  }
#else
  static bool are_new(char*, uint64_t) { return false; }
  static void ask_for(char*, uint64_t) {}
#endif
};

// One call: slices of rows of columns, contiguous in memory, each slice with a key, a stream and a threshold.
struct Call {
  const void *input, *other, *bias;
  void* output;
  uint64_t* words;
  int64_t slices, rows, columns;
  uint64_t first_row, row_step, first_column;  // row_step: from one slice to the next
  const uint64_t *keys, *streams, *thresholds;
  int64_t key_step, stream_step, threshold_step;  // 0 where all slices share one
  bool is_scaled;
  void (*kernel)(const Task&);
  int64_t element_size = 0;  // of the output; 0 where its pages are no matter, or there already
  int64_t offset = 0;        // elements before the first slice

  // A slice is divided into groups of rows, and rows into segments where they are long.
  int64_t rows_a_group = 0, columns_a_segment = 0, groups = 0, segments = 0;

  void divide() {
    columns_a_segment = columns < 2 * kGrain ? columns : kGrain;
    segments = (columns + columns_a_segment - 1) / columns_a_segment;
    rows_a_group = kGrain / columns_a_segment > 1 ? kGrain / columns_a_segment : 1;
    groups = (rows + rows_a_group - 1) / rows_a_group;
  }
};

double scale_of(uint64_t threshold) {
  const uint64_t kept = (uint64_t{1} << 32) - threshold;
  return kept ? 4294967296.0 / static_cast<double>(kept) : 1.0;
}

void run(int64_t begin, int64_t end, void* context) {
  const Call& call = *static_cast<const Call*>(context);
  const int64_t of_a_slice = call.groups * call.segments;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t slice = unit / of_a_slice, group = unit % of_a_slice / call.segments, segment = unit % call.segments;
    Task task{};
    task.input = call.input;
    task.output = call.output;
    task.other = call.other;
    task.bias = call.bias;
    task.words = call.words;
    task.key = call.keys[slice * call.key_step];
    task.stream = call.streams[slice * call.stream_step];
    task.threshold = call.thresholds[slice * call.threshold_step];
    task.scale = call.is_scaled ? scale_of(task.threshold) : 1.0;
    task.first_row = call.first_row + static_cast<uint64_t>(slice) * call.row_step;
    task.first_column = call.first_column;
    task.offset = call.offset + slice * call.rows * call.columns;
    task.columns = call.columns;
    task.row_begin = group * call.rows_a_group;
    task.row_end = std::min(task.row_begin + call.rows_a_group, call.rows);
    task.column_begin = segment * call.columns_a_segment;
    task.column_end = std::min(task.column_begin + call.columns_a_segment, call.columns);
    if (call.element_size) {
      const int64_t first = task.offset + task.row_begin * task.columns + task.column_begin;
      const int64_t end = task.offset + (task.row_end - 1) * task.columns + task.column_end;
      Pages::ask_for(static_cast<char*>(call.output) + first * call.element_size, (end - first) * call.element_size);
    }
    call.kernel(task);
  }
}

void run_all(Call& call) {
  if (call.slices <= 0 || call.rows <= 0 || call.columns <= 0) return;
  call.divide();
  const int64_t units = call.slices * call.groups * call.segments, elements = call.slices * call.rows * call.columns;
  if (!Pages::are_new(static_cast<char*>(call.output), elements * call.element_size)) call.element_size = 0;
  for_each(units, elements / units, run, &call);
}

constexpr int64_t kElementSize[kTypes] = {4, 8, 2, 2};

// What Python packs into an array of int64, in this order.
enum Packed {
  kScaled, kSlices, kRows, kColumns, kFirstRow, kRowStep, kFirstColumn,
  kKeys, kStreams, kThresholds, kKeyStep, kStreamStep, kThresholdStep,
};

const uint64_t* pointer(int64_t address) { return reinterpret_cast<const uint64_t*>(address); }

Call unpacked(const void* input, void* output, const int64_t* packed) {
  Call call{};
  call.input = input;
  call.output = output;
  call.slices = packed[kSlices];
  call.rows = packed[kRows];
  call.columns = packed[kColumns];
  call.first_row = static_cast<uint64_t>(packed[kFirstRow]);
  call.row_step = static_cast<uint64_t>(packed[kRowStep]);
  call.first_column = static_cast<uint64_t>(packed[kFirstColumn]);
  call.keys = pointer(packed[kKeys]);
  call.streams = pointer(packed[kStreams]);
  call.thresholds = pointer(packed[kThresholds]);
  call.key_step = packed[kKeyStep];
  call.stream_step = packed[kStreamStep];
  call.threshold_step = packed[kThresholdStep];
  call.is_scaled = packed[kScaled] != 0;
  return call;
}

// The address of the masks that are drawn most: one key, at stream 0.
struct OneKey {
  uint64_t key, threshold, stream = 0;
};

Call under(const OneKey& address, const void* input, void* output, int64_t rows, int64_t columns) {
  Call call{};
  call.input = input;
  call.output = output;
  call.slices = 1;
  call.rows = rows;
  call.columns = columns;
  call.keys = &address.key;
  call.streams = &address.stream;
  call.thresholds = &address.threshold;
  call.is_scaled = true;
  return call;
}

// A mask drawn before, and a tensor's axes as they lie in memory, from the outermost to the innermost.
struct StoredCall {
  StoredTask task;
  StoredKernel kernel;

  // Divide the axes into units of work. Returns how many elements there are.
  int64_t divide(int rank, const int64_t* lengths, const int64_t* bit_steps) {
    int64_t elements = 1;
    Axis axes[kMaxRank];
    for (int a = rank - 1; a >= 0; --a) {
      axes[a] = {lengths[a], bit_steps[a], elements};
      elements *= lengths[a];
    }
    task.inner = axes[rank - 1];
    int divided = rank - 1;  // the axis of segments
    if (task.inner.bit_step > 1 && rank > 1) {
      for (divided = rank - 2; divided > 0 && axes[divided].bit_step != 1;) --divided;
      task.across = axes[divided];
    }
    task.segment = divided == rank - 1 ? kGrain : 64;
    for (int a = 0; a < rank - 1; ++a) {
      if (a != divided) task.axes[task.rank++] = axes[a];
    }
    const Axis& axis = axes[divided];
    task.axes[task.rank++] = {(axis.length + task.segment - 1) / task.segment, axis.bit_step * task.segment, axis.stride * task.segment};
    return elements;
  }

  int64_t units() const {
    int64_t count = 1;
    for (int a = 0; a < task.rank; ++a) count *= task.axes[a].length;
    return count;
  }
};

void run_stored(int64_t begin, int64_t end, void* context) {
  const StoredCall& call = *static_cast<const StoredCall*>(context);
  StoredTask task = call.task;
  task.begin = begin;
  task.end = end;
  call.kernel(task);
}

void apply_bits(int type, const void* input, void* output, const uint64_t* words, int64_t first_bit, uint64_t threshold, int is_scaled, int rank, const int64_t* lengths, const int64_t* bit_steps) {
  StoredCall call{};
  call.task.input = input;
  call.task.output = output;
  call.task.words = words;
  call.task.first_bit = first_bit;
  call.task.scale = is_scaled ? scale_of(threshold) : 1.0;
  call.kernel = chosen.load()->apply_bits.of[type];
  const int64_t elements = call.divide(rank, lengths, bit_steps), units = call.units();
  if (elements > 0) for_each(units, elements / units, run_stored, &call);
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
DROPKIT_EXPORT void dropkit_dropout(int type, const void* input, void* output, const int64_t* packed) {
  Call call = unpacked(input, output, packed);
  call.kernel = chosen.load()->dropout.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// The same for one key. It is called so often that each argument counts. `words` may be null; else it takes the mask, a
// bit an element, of rows that are whole words.
DROPKIT_EXPORT void dropkit_dropout_plain(int type, const void* input, void* output, uint64_t* words, int64_t rows, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  Call call = under(address, input, output, rows, columns);
  call.words = words;
  call.kernel = chosen.load()->dropout.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// A residual plus dropout of a contiguous tensor.
DROPKIT_EXPORT void dropkit_add(int type, const void* input, const void* residual, void* output, int64_t rows, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  Call call = under(address, input, output, rows, columns);
  call.other = residual;
  call.kernel = chosen.load()->add.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// Dropout of activation(input + bias); `bias` may be null.
DROPKIT_EXPORT void dropkit_activate(int type, int activation, const void* input, const void* bias, void* output, int64_t rows, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  Call call = under(address, input, output, rows, columns);
  call.bias = bias;
  call.kernel = chosen.load()->activate[activation].of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// Its gradient with respect to the input, from that of the result.
DROPKIT_EXPORT void dropkit_activate_gradient(int type, int activation, const void* gradient, const void* input, const void* bias, void* output, int64_t rows, int64_t columns, uint64_t key, uint64_t threshold) {
  const OneKey address{key, threshold};
  Call call = under(address, gradient, output, rows, columns);
  call.other = input;
  call.bias = bias;
  call.kernel = chosen.load()->activate_gradient[activation].of[type];
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

DROPKIT_EXPORT void dropkit_uniform(int type, void* output, const int64_t* packed) {
  Call call = unpacked(nullptr, output, packed);
  call.kernel = chosen.load()->fields.uniform.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

DROPKIT_EXPORT void dropkit_normal(int type, void* output, const int64_t* packed) {
  Call call = unpacked(nullptr, output, packed);
  call.kernel = chosen.load()->fields.normal.of[type];
  call.element_size = kElementSize[type];
  run_all(call);
}

// Dropout of a contiguous tensor by the bits of its mask.
DROPKIT_EXPORT void dropkit_apply_bits(int type, const void* input, void* output, const uint64_t* words, int64_t elements, uint64_t threshold, int is_scaled) {
  const int64_t bit_step = 1;
  apply_bits(type, input, output, words, 0, threshold, is_scaled, 1, &elements, &bit_step);
}

// The same of a tensor that is dense in memory: its axes as they lie there, from the outermost to the innermost, and how
// many bits apart neighbours are, 0 where they share one. One axis at least has a step of 1, or all have 0.
DROPKIT_EXPORT void dropkit_apply_bits_strided(int type, const void* input, void* output, const uint64_t* words, int64_t first_bit, uint64_t threshold, int is_scaled, int rank, const int64_t* lengths, const int64_t* bit_steps) {
  apply_bits(type, input, output, words, first_bit, threshold, is_scaled, rank, lengths, bit_steps);
}
