// Barriers, operations across the lanes of a SIMD group, atomics.
#pragma once

namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_device_and_threadgroup = 3
};
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

#define METAL_HERE int line = __builtin_LINE()

inline void threadgroup_barrier(mem_flags, METAL_HERE) { emulated_wait(EmulatedWait::barrier, line); }
inline void simdgroup_barrier(mem_flags, METAL_HERE) { emulated_wait(EmulatedWait::simd_barrier, line); }

namespace emulated {

// The values of the lanes that take part in one operation.
template <class T> struct Lanes {
  const unsigned char (*slot)[EMULATED_SLOT_BYTES];
  unsigned active, self;
  T operator[](unsigned lane) const {
    T value;
    __builtin_memcpy(&value, slot[lane % EMULATED_WIDTH], sizeof(T));
    return value;
  }
  bool has(unsigned lane) const { return lane < EMULATED_WIDTH && (active >> lane & 1u); }
};

template <class T> inline Lanes<T> exchange(T value, EmulatedWait operation, int line) {
  static_assert(sizeof(T) <= EMULATED_SLOT_BYTES, "too large for a SIMD operation");
  EmulatedLane& me = *emulated_lane;
  unsigned turn = me.turn;
  me.turn = turn ^ 1u;
  EmulatedGroup& group = *me.group;
  __builtin_memcpy(group.slot[turn][me.index], &value, sizeof(T));
  emulated_wait(operation, line);
  return Lanes<T>{group.slot[turn], group.active, me.index};
}

// Pairs at distance 16, 8, .. 1; absent lanes are skipped. The first lane does it for all.
template <class T, class F> inline T reduce(const Lanes<T>& lanes, F combine) {
  EmulatedGroup& group = *emulated_lane->group;
  T value[EMULATED_WIDTH];
  if (group.reduced) {
    __builtin_memcpy(value, group.result, sizeof(T));
    return value[0];
  }
  bool present[EMULATED_WIDTH];
  for (unsigned i = 0; i < EMULATED_WIDTH; ++i) value[i] = lanes[i], present[i] = lanes.has(i);
  for (unsigned step = EMULATED_WIDTH / 2; step; step /= 2)
    for (unsigned i = 0; i < step; ++i) {
      if (present[i] && present[i + step])
        value[i] = combine(value[i], value[i + step]);
      else if (present[i + step])
        value[i] = value[i + step];
      present[i] = present[i] || present[i + step];
    }
  __builtin_memcpy(group.result, value, sizeof(T));
  group.reduced = true;
  return value[0];
}

template <class T, class F> inline T prefix(const Lanes<T>& lanes, T start, bool inclusive, F combine) {
  for (unsigned i = 0; i < lanes.self + inclusive; ++i)
    if (lanes.has(i)) start = combine(start, lanes[i]);
  return start;
}

}  // namespace emulated

#define METAL_REDUCTION(name, expression)                                        \
  template <class T> inline T name(T value, METAL_HERE) {                        \
    return emulated::reduce(emulated::exchange(value, EmulatedWait::name, line), \
                            [](T a, T b) { return T(expression); });             \
  }
METAL_REDUCTION(simd_sum, a + b)
METAL_REDUCTION(simd_product, a * b)
METAL_REDUCTION(simd_max, max(a, b))
METAL_REDUCTION(simd_min, min(a, b))
METAL_REDUCTION(simd_and, a & b)
METAL_REDUCTION(simd_or, a | b)
METAL_REDUCTION(simd_xor, a ^ b)

// Beyond the ends of the group a shuffle by distance returns the lane's own value.
#define METAL_SHUFFLE(name, from, wait)                               \
  template <class T> inline T name(T value, ushort n, METAL_HERE) {   \
    auto lanes = emulated::exchange(value, EmulatedWait::wait, line); \
    unsigned source = from;                                           \
    return source < EMULATED_WIDTH ? lanes[source] : value;           \
  }
METAL_SHUFFLE(simd_shuffle, n, simd_shuffle)
METAL_SHUFFLE(simd_shuffle_xor, lanes.self ^ n, simd_shuffle_xor)
METAL_SHUFFLE(simd_shuffle_down, lanes.self + n, simd_shuffle_down)
METAL_SHUFFLE(simd_shuffle_up, lanes.self - n, simd_shuffle_up)
METAL_SHUFFLE(simd_broadcast, n, simd_broadcast)
METAL_SHUFFLE(simd_shuffle_rotate_down, (lanes.self + n) % EMULATED_WIDTH, simd_shuffle_down)
METAL_SHUFFLE(simd_shuffle_rotate_up, (lanes.self - n) % EMULATED_WIDTH, simd_shuffle_up)
template <class T> inline T simd_broadcast_first(T value, METAL_HERE) {
  auto lanes = emulated::exchange(value, EmulatedWait::simd_broadcast, line);
  return lanes[__builtin_ctz(lanes.active)];
}

#define METAL_PREFIX(name, start, inclusive, op)                                                             \
  template <class T> inline T name(T value, METAL_HERE) {                                                    \
    return emulated::prefix(emulated::exchange(value, EmulatedWait::simd_prefix, line), T(start), inclusive, \
                            [](T a, T b) { return T(a op b); });                                             \
  }
METAL_PREFIX(simd_prefix_exclusive_sum, 0, false, +)
METAL_PREFIX(simd_prefix_inclusive_sum, 0, true, +)
METAL_PREFIX(simd_prefix_exclusive_product, 1, false, *)
METAL_PREFIX(simd_prefix_inclusive_product, 1, true, *)

struct simd_vote {
  typedef uint64_t vote_t;
  vote_t bits, active;
  bool all() const { return bits == active; }
  bool any() const { return bits != 0; }
  explicit operator vote_t() const { return bits; }
};
inline simd_vote simd_ballot(bool value, METAL_HERE) {
  auto lanes = emulated::exchange(value, EmulatedWait::simd_vote, line);
  simd_vote vote{0, lanes.active};
  for (unsigned i = 0; i < EMULATED_WIDTH; ++i)
    if (lanes.has(i) && lanes[i]) vote.bits |= 1ull << i;
  return vote;
}
inline bool simd_all(bool value, METAL_HERE) { return simd_ballot(value, line).all(); }
inline bool simd_any(bool value, METAL_HERE) { return simd_ballot(value, line).any(); }
inline bool simd_is_first(METAL_HERE) {
  auto lanes = emulated::exchange(true, EmulatedWait::simd_vote, line);
  return lanes.self == unsigned(__builtin_ctz(lanes.active));
}

// Threads of a threadgroup and threadgroups run one at a time: an atomic is a plain variable of its own type.
enum memory_order { memory_order_relaxed };
template <class T> struct atomic {
  T value;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

template <class T> inline T atomic_load_explicit(const atomic<T>* a, memory_order) { return a->value; }
template <class T, class U> inline void atomic_store_explicit(atomic<T>* a, U v, memory_order) {
  a->value = T(v);
}
#define METAL_ATOMIC(name, expression)                                               \
  template <class T, class U> inline T name(atomic<T>* a, U operand, memory_order) { \
    T old = a->value, v = T(operand);                                                \
    a->value = T(expression);                                                        \
    return old;                                                                      \
  }
METAL_ATOMIC(atomic_fetch_add_explicit, old + v)
METAL_ATOMIC(atomic_fetch_sub_explicit, old - v)
METAL_ATOMIC(atomic_fetch_max_explicit, max(old, v))
METAL_ATOMIC(atomic_fetch_min_explicit, min(old, v))
METAL_ATOMIC(atomic_fetch_and_explicit, old& v)
METAL_ATOMIC(atomic_fetch_or_explicit, old | v)
METAL_ATOMIC(atomic_fetch_xor_explicit, old ^ v)
METAL_ATOMIC(atomic_exchange_explicit, v)
template <class T, class U> inline bool atomic_compare_exchange_weak_explicit(atomic<T>* a, T* expected, U v,
                                                                              memory_order, memory_order) {
  bool same = a->value == *expected;
  if (same)
    a->value = T(v);
  else
    *expected = a->value;
  return same;
}

namespace emulated {
template <class T> inline T& threadgroup_variable(int id, const char* name) {
  return *static_cast<T*>(emulated_threadgroup(id, name, sizeof(T), alignof(T)));
}
}  // namespace emulated

}  // namespace metal
