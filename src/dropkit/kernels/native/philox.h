// The mask definition in C++: Philox4x32-10 addressed by block, row and stream, as dropkit.random states it.
#pragma once

#include <cstdint>

// Without external linkage: each file is compiled for its own instruction set, and the linker may not merge them.
namespace dropkit {
namespace {

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

constexpr u32 kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr u32 kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;

// The ten round keys of one 64-bit key, and the stream that goes with it.
struct Key {
  u32 first[kRounds], second[kRounds], stream;

  Key(u64 key, u32 stream_number) : stream(stream_number) {
    u32 low = static_cast<u32>(key), high = static_cast<u32>(key >> 32);
    for (int round = 0; round < kRounds; ++round, low += kWeyl0, high += kWeyl1) {
      first[round] = low;
      second[round] = high;
    }
  }
};

struct Words {
  u32 word[4];
};

inline Words philox(const Key& key, u32 c0, u32 c1, u32 c2, u32 c3) {
  for (int round = 0; round < kRounds; ++round) {
    const u64 a = u64{kMultiplier0} * c0, b = u64{kMultiplier1} * c2;
    c0 = static_cast<u32>(b >> 32) ^ c1 ^ key.first[round];
    c1 = static_cast<u32>(b);
    c2 = static_cast<u32>(a >> 32) ^ c3 ^ key.second[round];
    c3 = static_cast<u32>(a);
  }
  return {{c0, c1, c2, c3}};
}

// The 16-bit half of one place: plane 0 holds the high halves of the draws, plane 1 the low ones.
inline u32 half_at(const Key& key, u64 row, u64 column, u32 plane) {
  const u32 block = static_cast<u32>(column >> 3) | plane << 31;
  const Words words = philox(key, block, static_cast<u32>(row), static_cast<u32>(row >> 32), key.stream);
  const u32 lane = column & 7;
  return words.word[lane >> 1] >> (16 * (lane & 1)) & 0xFFFF;
}

// What of rounds 0 and 1 depends on the row alone; its counterpart for the columns is a vector.
struct RowPart {
  u32 first, third, fourth;

  RowPart(const Key& key, u64 row) {
    const u64 b = u64{kMultiplier1} * static_cast<u32>(row >> 32);
    const u32 c0 = static_cast<u32>(b >> 32) ^ static_cast<u32>(row) ^ key.first[0];
    const u64 a = u64{kMultiplier0} * c0;
    first = static_cast<u32>(b) ^ key.first[1];
    third = static_cast<u32>(a >> 32) ^ key.second[1];
    fourth = static_cast<u32>(a) ^ key.second[2];
  }
};

// A rate as the definition takes it: an element is kept where its draw is at least the threshold, 0 < T < 2**32.
struct Threshold {
  u16 high, low;

  explicit Threshold(u64 value) : high(static_cast<u16>(value >> 16)), low(static_cast<u16>(value)) {}
};

}  // namespace
}  // namespace dropkit
