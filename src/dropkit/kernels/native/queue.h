// Bits on their way to a sink, which takes them best 64 at a time.
#pragma once

#include "philox.h"

namespace dropkit {
namespace {

constexpr int kGroup = 64;  // elements to a word of bits

inline u64 ones(int count) { return count == kGroup ? ~u64{0} : (u64{1} << count) - 1; }

// Collects bits and hands them on 64 at a time, so that the ends of rows cost nothing.
template <class Apply>
class Queue {
 public:
  explicit Queue(Apply& apply) : apply_(apply) {}

  void put(u64 bits, int count) {
    if (filled_ == 0 && count == kGroup) return apply_.full(bits);
    pending_ |= bits << filled_;
    const int room = kGroup - filled_;
    if (count < room) {
      filled_ += count;
    } else {
      apply_.full(pending_);
      pending_ = room < kGroup ? bits >> room : 0;
      filled_ = count - room;
    }
  }

  void flush() {
    if (filled_) apply_.partial(pending_, filled_);
    pending_ = 0;
    filled_ = 0;
  }

 private:
  Apply& apply_;
  u64 pending_ = 0;
  int filled_ = 0;
};

}  // namespace
}  // namespace dropkit
