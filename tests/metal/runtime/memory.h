// Memory with unreadable pages around it. What lies between a buffer and the nearest such page (at most 15
// bytes behind it, where its size is no multiple of 16) is filled with the poison and looked at afterwards.
#pragma once
#include <sys/mman.h>
#include <unistd.h>
#include <cstdint>
#include <cstring>
#include <vector>

struct Region {
  char name[64];
  char *guard, *low, *high, *guard_end;  // unreadable: guard..low and high..guard_end
  char* data;
  size_t bytes;
  uint8_t poison;

  size_t slack() const { return static_cast<size_t>(high - data) - bytes; }
  void fill() { memset(low, poison, static_cast<size_t>(high - low)); }
  bool damaged() const {
    for (const char* p = low; p < data; ++p)
      if (static_cast<uint8_t>(*p) != poison) return true;
    for (const char* p = data + bytes; p < high; ++p)
      if (static_cast<uint8_t>(*p) != poison) return true;
    return false;
  }
};

constexpr size_t GUARD_BYTES = 1 << 20;

inline Region make_region(const char* name, size_t bytes, size_t alignment, uint8_t poison) {
  size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), room = (bytes + page + 15) / page * page;
  Region region{};
  strncpy(region.name, name, sizeof(region.name) - 1);
  region.guard = static_cast<char*>(
      mmap(nullptr, room + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (region.guard == MAP_FAILED) return region;
  region.low = region.guard + GUARD_BYTES;
  region.high = region.low + room;
  region.guard_end = region.high + GUARD_BYTES;
  region.data = region.high - (bytes + alignment - 1) / alignment * alignment;
  region.bytes = bytes;
  region.poison = poison;
  mprotect(region.low, room, PROT_READ | PROT_WRITE);
  region.fill();
  return region;
}

inline void free_region(const Region& region) {
  munmap(region.guard, static_cast<size_t>(region.guard_end - region.guard));
}
