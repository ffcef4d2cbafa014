// A call from Python, and its division into tasks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pages.h"
#include "parallel.h"
#include "task.h"

namespace dropkit {
namespace {

// One call: slices of rows of columns, contiguous in memory, each slice with a key, a stream and a threshold.
struct Call {
  const void *input, *other, *bias;
  void* output;
  uint64_t* words;
  int64_t slices, rows, columns;
  uint64_t first_row, row_step, first_column;  // row_step: from one slice to the next
  const uint64_t *keys, *streams, *thresholds;
  int64_t key_step, stream_step, threshold_step;  // 0 where all slices share one
  const double *scales, *shifts, *dropped;         // of slices, as there are thresholds; null where scales follow from these
  bool is_scaled, keeps_all;  // whether survivors are scaled; whether the mask is known otherwise, and none drawn
  bool has_whole_rows;        // whether rows are never divided
  void (*kernel)(const Task&);
  int64_t element_size = 0;  // of the output; 0 where its pages are no matter, or there already
  int64_t offset = 0;        // elements before the first slice

  // A slice is divided into groups of rows, and rows into segments where they are long.
  int64_t rows_a_group = 0, columns_a_segment = 0, groups = 0, segments = 0;

  void divide() {
    columns_a_segment = has_whole_rows || columns < 2 * kGrain ? columns : kGrain;
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
    if (call.scales) task.scale = call.scales[slice * call.threshold_step];
    if (call.shifts) task.shift = call.shifts[slice * call.threshold_step];
    if (call.dropped) task.dropped = call.dropped[slice * call.threshold_step];
    if (call.keeps_all) task.threshold = 0;
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
  kScales, kShifts, kDropped,
};

const uint64_t* pointer(int64_t address) { return reinterpret_cast<const uint64_t*>(address); }
const double* numbers(int64_t address) { return reinterpret_cast<const double*>(address); }

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

Call under(const OneKey& address, const void* input, void* output, int64_t elements, int64_t columns) {
  Call call{};
  call.input = input;
  call.output = output;
  call.slices = 1;
  call.rows = columns ? elements / columns : 0;
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
  int64_t divide(int64_t rank, const int64_t* lengths, const int64_t* bit_steps) {
    int64_t elements = 1;
    Axis axes[kMaxRank];
    for (int64_t a = rank - 1; a >= 0; --a) {
      axes[a] = {lengths[a], bit_steps[a], elements};
      elements *= lengths[a];
    }
    task.inner = axes[rank - 1];
    int64_t divided = rank - 1;  // the axis of segments
    if (task.inner.bit_step > 1 && rank > 1) {
      for (divided = rank - 2; divided > 0 && axes[divided].bit_step != 1;) --divided;
      task.across = axes[divided];
    }
    task.segment = divided == rank - 1 ? kGrain : 64;
    for (int64_t a = 0; a < rank - 1; ++a) {
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

}  // namespace
}  // namespace dropkit
