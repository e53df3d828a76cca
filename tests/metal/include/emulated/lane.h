// What the running thread of a kernel and the scheduler (runtime.cpp) share.
#pragma once

constexpr unsigned EMULATED_WIDTH = 32;
constexpr unsigned EMULATED_SLOT_BYTES = 32;  // the largest value that SIMD lanes exchange

// The SIMD group of a thread: lanes put their values into a slot each, wait until all have, and read.
// Two sets of slots alternate: a lane writes the next set only after all lanes have read this one.
struct EmulatedGroup {
  alignas(32) unsigned char slot[2][EMULATED_WIDTH][EMULATED_SLOT_BYTES];
  unsigned active;  // the lanes that took part in the last operation
  bool reduced;     // whether a lane has put their sum or the like into `result`
  alignas(32) unsigned char result[EMULATED_SLOT_BYTES];
};

struct EmulatedLane {
  EmulatedGroup* group;
  unsigned index;  // in the SIMD group
  unsigned turn;   // which set of slots is next
  unsigned position_in_grid[3], position_in_threadgroup[3], threadgroup_position[3];
  unsigned threadgroups[3], threads[3], threads_per_threadgroup[3], dispatched_threads[3];
  unsigned index_in_threadgroup, simdgroup_index, simdgroups, dispatched_simdgroups;
};

enum class EmulatedWait : int {
  none,
  barrier,
  simd_barrier,
  simd_sum,
  simd_product,
  simd_max,
  simd_min,
  simd_and,
  simd_or,
  simd_xor,
  simd_shuffle,
  simd_shuffle_xor,
  simd_shuffle_up,
  simd_shuffle_down,
  simd_broadcast,
  simd_prefix,
  simd_vote,
  simd_matrix
};

extern "C" {
extern EmulatedLane* emulated_lane;                    // the running thread
void emulated_wait(EmulatedWait operation, int line);  // until all threads or lanes are there
void* emulated_threadgroup(int id, const char* name, unsigned long bytes, unsigned long alignment);
}
