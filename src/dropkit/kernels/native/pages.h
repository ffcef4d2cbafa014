// Memory that is new to the process.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dropkit {
namespace {

using std::uint64_t;

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

}  // namespace
}  // namespace dropkit
