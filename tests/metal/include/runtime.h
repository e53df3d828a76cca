// The part of the Metal Shading Language that the kernels use, for a CPU.
//
// Every thread of a threadgroup is a fiber. A fiber runs until it has to wait for others: at a barrier for all of its
// threadgroup, in a SIMD operation for all 32 lanes. Threadgroups run one after the other. Memory of a threadgroup
// lies in a section of its own, poisoned before each threadgroup; buffers end at a page that cannot be touched.
#pragma once
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

// Switch from one stack to another: save what a call must preserve, exchange the stack pointers. `ucontext` does the
// same with two system calls, which is most of the time of an emulation.
#if defined(__x86_64__)
struct Context { void* stack_pointer; };
extern "C" void switch_stacks(void** from, void* to);
asm(R"(
.text
.type switch_stacks, @function
switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size switch_stacks, .-switch_stacks
)");
inline void switch_context(Context& from, Context& to) { switch_stacks(&from.stack_pointer, to.stack_pointer); }
inline void start_context(Context& context, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + size) - 2;  // aligned as behind a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  context.stack_pointer = top;
}
#else
struct Context { ucontext_t place; };
inline void switch_context(Context& from, Context& to) { swapcontext(&from.place, &to.place); }
inline void start_context(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.place);
  context.place.uc_stack.ss_sp = stack;
  context.place.uc_stack.ss_size = size;
  context.place.uc_link = nullptr;
  makecontext(&context.place, entry, 0);
}
#endif

typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef unsigned long ulong;

template <typename To, typename From>
inline To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// 16-bit floats: storage, rounded to the nearest even; arithmetic happens in float.
struct bfloat16_t {
  uint16_t bits;
  bfloat16_t() = default;
  bfloat16_t(float value) {
    const uint32_t wide = as_type<uint32_t>(value);
    bits = std::isnan(value) ? 0x7fc0 : uint16_t((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
  }
  operator float() const { return as_type<float>(uint32_t(bits) << 16); }
};

struct half {
  uint16_t bits;
  half() = default;
  half(float value) {
    const uint32_t wide = as_type<uint32_t>(value), sign = (wide >> 16) & 0x8000;
    const float size = std::fabs(value);
    if (std::isnan(value)) bits = uint16_t(sign | 0x7e00);
    else if (size >= 65520.0f) bits = uint16_t(sign | 0x7c00);
    else if (size < 6.103515625e-05f) bits = uint16_t(sign | uint16_t(std::nearbyintf(size * 16777216.0f)));
    else {
      const uint32_t magnitude = wide & 0x7fffffff;
      bits = uint16_t(sign | ((magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13));
    }
  }
  operator float() const {
    const uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    float size;
    if (exponent == 0) size = mantissa * 5.9604644775390625e-08f;
    else if (exponent == 31) size = mantissa ? NAN : INFINITY;
    else size = as_type<float>((exponent + 112) << 23 | mantissa << 13);
    return bits & 0x8000 ? -size : size;
  }
};

struct half2 { half x, y; };
struct uint3 { uint x, y, z; };
struct uint4 { uint x, y, z, w; };

namespace emulator {

constexpr int MAX_THREADS = 1024;
constexpr size_t STACK = 64 * 1024;
enum State { READY, AT_SIMD, AT_BARRIER, DONE };

struct Simd {
  uint64_t slots[2][32];  // written by one operation while the last one's may still be read
  bool live[32];
};

struct Fiber {
  Context context;
  State state;
  const char* waits_for;  // the operation, so that lanes that went different ways are found
  uint operations;
};

struct Error { char text[512]; };

inline Fiber fibers[MAX_THREADS];
inline Simd simds[MAX_THREADS / 32];
inline Context scheduler;
inline char* stacks;
inline uint thread_count, current;
inline uint3 group_position, group_count;
inline void (*kernel)();
inline Error error;
inline sigjmp_buf escape;

inline void wait(State state, const char* operation) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  fiber.waits_for = operation;
  switch_context(fiber.context, scheduler);
}

inline void enter() {
  kernel();
  fibers[current].state = DONE;
  simds[current / 32].live[current % 32] = false;
  switch_context(fibers[current].context, scheduler);
}

// Exchange a value with the other lanes; returns where all values of this operation stand.
template <typename V>
inline const uint64_t* exchange(V value, const char* operation) {
  Simd& simd = simds[current / 32];
  const uint which = fibers[current].operations++ & 1;
  uint64_t wide = 0;
  std::memcpy(&wide, &value, sizeof(V));
  simd.slots[which][current % 32] = wide;
  wait(AT_SIMD, operation);
  return simd.slots[which];
}

template <typename V>
inline V taken(const uint64_t* slots, uint lane) {
  V value;
  std::memcpy(&value, &slots[lane & 31], sizeof(V));
  return value;
}

template <typename V, typename F>
inline V reduced(V value, const char* operation, F join) {
  const uint64_t* slots = exchange(value, operation);
  // Pairwise, as a butterfly of shuffles adds up.
  V values[32];
  for (uint lane = 0; lane < 32; lane++) values[lane] = taken<V>(slots, lane);
  for (uint half_count = 16; half_count > 0; half_count /= 2) {
    for (uint lane = 0; lane < half_count; lane++) values[lane] = join(values[lane], values[lane + half_count]);
  }
  return values[0];
}

}  // namespace emulator

#define device
#define thread
#define threadgroup static __attribute__((section("threadgroup_memory")))
#define threadgroup_position_in_grid (emulator::group_position)
#define threadgroups_per_grid (emulator::group_count)
#define thread_index_in_threadgroup (emulator::current)
#define thread_index_in_simdgroup (emulator::current % 32)
#define simdgroup_index_in_threadgroup (emulator::current / 32)

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags) { emulator::wait(emulator::AT_BARRIER, "threadgroup_barrier"); }

template <typename V> inline V simd_sum(V v) {
  return emulator::reduced(v, "simd_sum", [](V a, V b) { return V(a + b); });
}
template <typename V> inline V simd_max(V v) {
  return emulator::reduced(v, "simd_max", [](V a, V b) { return a > b ? a : b; });
}
template <typename V> inline V simd_min(V v) {
  return emulator::reduced(v, "simd_min", [](V a, V b) { return a < b ? a : b; });
}
template <typename V> inline V simd_shuffle(V v, uint lane) {
  return emulator::taken<V>(emulator::exchange(v, "simd_shuffle"), lane);
}
template <typename V> inline V simd_shuffle_xor(V v, uint mask) {
  return emulator::taken<V>(emulator::exchange(v, "simd_shuffle_xor"), thread_index_in_simdgroup ^ mask);
}
template <typename V> inline V simd_prefix_exclusive_sum(V v) {
  const uint64_t* slots = emulator::exchange(v, "simd_prefix_exclusive_sum");
  V sum = 0;
  for (uint lane = 0; lane < thread_index_in_simdgroup; lane++) sum += emulator::taken<V>(slots, lane);
  return sum;
}

namespace metal {
inline float exp(float x) { return std::exp(x); }
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline uint max(uint a, uint b) { return a > b ? a : b; }
inline uint min(uint a, uint b) { return a < b ? a : b; }
namespace precise {
inline float cos(float x) { return std::cos(x); }
inline float sin(float x) { return std::sin(x); }
}
}
using namespace metal;
