// Runs a kernel: every thread of a threadgroup is a fiber; threadgroups run one after the other. See
// emulator.py.
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <pthread.h>
#include <ucontext.h>
#include "fiber.h"
#include "../include/emulated/lane.h"
#include "memory.h"

namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr unsigned MAX_THREADS = 1024, MAX_GROUPS = MAX_THREADS / EMULATED_WIDTH, THREADGROUP_BYTES = 32768;
const char* const WAITS[] = {"",
                             "threadgroup_barrier",
                             "simdgroup_barrier",
                             "simd_sum",
                             "simd_product",
                             "simd_max",
                             "simd_min",
                             "simd_and",
                             "simd_or",
                             "simd_xor",
                             "simd_shuffle",
                             "simd_shuffle_xor",
                             "simd_shuffle_up",
                             "simd_shuffle_down",
                             "simd_broadcast",
                             "a SIMD prefix",
                             "a SIMD vote",
                             "a simdgroup_matrix product"};

enum Order { forward, backward, shuffled };
enum class State { ready, waiting, returned };
enum class Progress { going, at_barrier, finished };

struct Fiber {
  Context context;
  EmulatedLane lane;
  State state;
  EmulatedWait operation;
  int line;
};

constexpr int MESSAGE_BYTES = 1024;

struct Launch {
  const char* name;
  void (*entry)(void* const*, const EmulatedLane*);
  void* const* arguments;
  unsigned grid[3], threadgroup[3];
  int order;
  uint64_t seed;
  uint8_t poison;
  char* message;  // of MESSAGE_BYTES
};

Fiber fibers[MAX_THREADS];
EmulatedGroup groups[MAX_GROUPS];
Context scheduler;
Fiber* running;
const Launch* launch;
char* stacks;
unsigned thread_count, group_count;
uint64_t random_state;
std::vector<Region> buffers;
struct Variable {
  int id;
  Region region;
};
std::vector<Variable> variables;  // in threadgroup memory
sigjmp_buf escape;
pthread_t worker;

[[noreturn]] void fail(const char* format, ...) {
  char text[MESSAGE_BYTES / 2];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  if (running) {
    const EmulatedLane& lane = running->lane;
    snprintf(launch->message, MESSAGE_BYTES, "%s (thread %u, %u, %u of threadgroup %u, %u, %u)", text,
             lane.position_in_threadgroup[0], lane.position_in_threadgroup[1],
             lane.position_in_threadgroup[2], lane.threadgroup_position[0], lane.threadgroup_position[1],
             lane.threadgroup_position[2]);
  } else {
    snprintf(launch->message, MESSAGE_BYTES, "%s", text);
  }
  siglongjmp(escape, 1);
}

unsigned random_below(unsigned limit) {
  random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
  return static_cast<unsigned>((random_state * 2685821657736338717ull) >> 33) % limit;
}

void arrange(unsigned* items, unsigned count) {
  for (unsigned i = 0; i < count; ++i) items[i] = launch->order == backward ? count - 1 - i : i;
  if (launch->order != shuffled) return;
  for (unsigned i = count; i > 1; --i) {
    unsigned j = random_below(i), swap = items[i - 1];
    items[i - 1] = items[j], items[j] = swap;
  }
}

void thread_main() {
  launch->entry(launch->arguments, &running->lane);
  running->state = State::returned;
  switch_stack(running->context, scheduler);
}

void resume(Fiber& fiber) {
  running = &fiber;
  emulated_lane = &fiber.lane;
  switch_stack(scheduler, fiber.context);
  running = nullptr;
}

const char* divergent(const Fiber& fiber) {
  return fiber.operation == EmulatedWait::barrier ? "divergent barrier" : "divergent SIMD operation";
}

// Runs every lane of a SIMD group until it waits or has returned.
Progress step(unsigned index) {
  Fiber* lanes = fibers + index * EMULATED_WIDTH;
  unsigned count = thread_count - index * EMULATED_WIDTH < EMULATED_WIDTH
                       ? thread_count - index * EMULATED_WIDTH
                       : EMULATED_WIDTH;
  unsigned order[EMULATED_WIDTH], active = 0;
  arrange(order, count);
  for (unsigned i = 0; i < count; ++i)
    if (lanes[order[i]].state == State::ready) resume(lanes[order[i]]);
  const Fiber *first = nullptr, *absent = nullptr;
  for (unsigned i = 0; i < count; ++i) {
    const Fiber& lane = lanes[i];
    if (lane.state == State::returned) {
      absent = &lane;
      continue;
    }
    active |= 1u << i;
    if (!first) first = &lane;
    if (lane.operation != first->operation || lane.line != first->line)
      fail("%s: of SIMD group %u, lane %u waits in %s (line %d), lane %u in %s (line %d)", divergent(*first),
           index, first->lane.index, WAITS[int(first->operation)], first->line, i, WAITS[int(lane.operation)],
           lane.line);
  }
  if (!first) return Progress::finished;
  if (absent)
    fail("%s: of SIMD group %u, lane %u waits in %s (line %d), lane %u has returned", divergent(*first),
         index, first->lane.index, WAITS[int(first->operation)], first->line, absent->lane.index);
  if (first->operation == EmulatedWait::barrier) return Progress::at_barrier;
  groups[index].active = active;
  groups[index].reduced = false;
  for (unsigned i = 0; i < count; ++i)
    if (lanes[i].state == State::waiting) lanes[i].state = State::ready;
  return Progress::going;
}

// Runs all SIMD groups until each is at a barrier or has finished; in random order their steps are
// interleaved.
void run_to_barrier() {
  unsigned order[MAX_GROUPS], count = group_count;
  arrange(order, count);
  while (count) {
    unsigned i = launch->order == shuffled ? random_below(count) : 0;
    if (step(order[i]) == Progress::going) continue;
    --count;
    for (unsigned j = i; j < count; ++j) order[j] = order[j + 1];
  }
}

// Lets the waiting threads go on; false if none waits.
bool pass_barrier() {
  const Fiber *first = nullptr, *absent = nullptr;
  for (unsigned i = 0; i < thread_count; ++i) {
    Fiber& fiber = fibers[i];
    if (fiber.state == State::returned) {
      absent = &fiber;
      continue;
    }
    if (!first) first = &fiber;
    if (fiber.line != first->line)
      fail(
          "divergent barrier: thread %u waits at the threadgroup_barrier of line %d, thread %u at that of "
          "line %d",
          first->lane.index_in_threadgroup, first->line, i, fiber.line);
    fiber.state = State::ready;
  }
  if (first && absent)
    fail("divergent barrier: thread %u waits at the threadgroup_barrier of line %d, thread %u has returned",
         first->lane.index_in_threadgroup, first->line, absent->lane.index_in_threadgroup);
  return first != nullptr;
}

void place_threads(const unsigned* position) {
  unsigned size[3], threadgroups[3];
  for (int d = 0; d < 3; ++d) {
    unsigned left = launch->grid[d] - position[d] * launch->threadgroup[d];
    size[d] = left < launch->threadgroup[d] ? left : launch->threadgroup[d];
    threadgroups[d] = (launch->grid[d] + launch->threadgroup[d] - 1) / launch->threadgroup[d];
  }
  thread_count = size[0] * size[1] * size[2];
  group_count = (thread_count + EMULATED_WIDTH - 1) / EMULATED_WIDTH;
  unsigned dispatched = launch->threadgroup[0] * launch->threadgroup[1] * launch->threadgroup[2];
  for (unsigned i = 0; i < thread_count; ++i) {
    Fiber& fiber = fibers[i];
    EmulatedLane& lane = fiber.lane;
    unsigned at[3] = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
    for (int d = 0; d < 3; ++d) {
      lane.position_in_threadgroup[d] = at[d];
      lane.position_in_grid[d] = position[d] * launch->threadgroup[d] + at[d];
      lane.threadgroup_position[d] = position[d];
      lane.threadgroups[d] = threadgroups[d];
      lane.threads[d] = launch->grid[d];
      lane.threads_per_threadgroup[d] = size[d];
      lane.dispatched_threads[d] = launch->threadgroup[d];
    }
    lane.index_in_threadgroup = i;
    lane.index = i % EMULATED_WIDTH;
    lane.simdgroup_index = i / EMULATED_WIDTH;
    lane.simdgroups = group_count;
    lane.dispatched_simdgroups = (dispatched + EMULATED_WIDTH - 1) / EMULATED_WIDTH;
    lane.group = groups + i / EMULATED_WIDTH;
    lane.turn = 0;
    fiber.state = State::ready;
    prepare(fiber.context, stacks + i * STACK_BYTES + 4096, STACK_BYTES - 4096, thread_main);
  }
}

void run_threadgroup(const unsigned* position) {
  place_threads(position);
  memset(groups, launch->poison, sizeof(EmulatedGroup) * group_count);
  for (Variable& variable : variables) variable.region.fill();
  do run_to_barrier();
  while (pass_barrier());
  for (const Variable& variable : variables)
    if (variable.region.damaged()) fail("writes outside %s (threadgroup memory)", variable.region.name);
}

void run_all() {
  unsigned count[3], total = 1;
  for (int d = 0; d < 3; ++d) {
    count[d] = (launch->grid[d] + launch->threadgroup[d] - 1) / launch->threadgroup[d];
    total *= count[d];
  }
  std::vector<unsigned> order(total);
  arrange(order.data(), total);
  for (unsigned index : order) {
    unsigned position[3] = {index % count[0], index / count[0] % count[1], index / count[0] / count[1]};
    run_threadgroup(position);
  }
  for (const Region& buffer : buffers)
    if (buffer.damaged()) fail("writes outside %s", buffer.name);
}

const char* access_kind(const void* context) {
#if defined(__x86_64__)
  return static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2 ? "writes" : "reads";
#else
  (void)context;
  return "reads or writes";
#endif
}

void explain(const Region& region, const char* address, const char* verb) {
  long offset = address - region.data;
  if (address >= region.low && address < region.high)
    fail("writes into the input %s: name it in in_place", region.name);
  if (offset < 0) fail("%s before the start of %s (byte %ld)", verb, region.name, offset);
  fail("%s beyond the end of %s (byte %ld of %zu)", verb, region.name, offset, region.bytes);
}

void on_fault(int, siginfo_t* info, void* context) {
  if (!running || !pthread_equal(pthread_self(), worker)) {
    signal(SIGSEGV, SIG_DFL);
    return;
  }
  const char* address = static_cast<const char*>(info->si_addr);
  const char* verb = access_kind(context);
  for (const Region& buffer : buffers)
    if (address >= buffer.guard && address < buffer.guard_end) explain(buffer, address, verb);
  for (const Variable& variable : variables)
    if (address >= variable.region.guard && address < variable.region.guard_end)
      explain(variable.region, address, verb);
  if (address >= stacks && address < stacks + STACK_BYTES * MAX_THREADS)
    fail("needs more than %zu KB of thread memory", STACK_BYTES >> 10);
  fail("%s memory outside every buffer (address %p)", verb, static_cast<const void*>(address));
}

struct Location {
  const char* file;
  unsigned line, column;
};
[[noreturn]] void fail_at(const Location* at, const char* what, unsigned long number) {
  fail("%s:%u: %s %lu", at->file, at->line, what, number);
}

}  // namespace

extern "C" {

EmulatedLane* emulated_lane;

void emulated_wait(EmulatedWait operation, int line) {
  Fiber* self = running;
  self->state = State::waiting;
  self->operation = operation;
  self->line = line;
  switch_stack(self->context, scheduler);
}

void* emulated_threadgroup(int id, const char* name, unsigned long bytes, unsigned long alignment) {
  size_t total = bytes;
  for (const Variable& variable : variables) {
    if (variable.id == id) return variable.region.data;
    total += variable.region.bytes;
  }
  if (total > THREADGROUP_BYTES)
    fail("needs %zu bytes of threadgroup memory; there are %u", total, THREADGROUP_BYTES);
  variables.push_back({id, make_region(name, bytes, alignment > 16 ? alignment : 16, launch->poison)});
  return variables.back().region.data;
}

void* emulated_buffer(const char* name, size_t bytes, uint8_t poison) {
  buffers.push_back(make_region(name, bytes, 16, poison));
  return buffers.back().data;
}

void emulated_protect(void* data) {
  for (const Region& buffer : buffers)
    if (buffer.data == data) mprotect(buffer.low, static_cast<size_t>(buffer.high - buffer.low), PROT_READ);
}

void emulated_release() {
  for (const Region& buffer : buffers) free_region(buffer);
  for (const Variable& variable : variables) free_region(variable.region);
  buffers.clear();
  variables.clear();
}

int emulated_run(const Launch* given) {
  launch = given;
  worker = pthread_self();
  random_state = given->seed * 2 + 88172645463325253ull;
  running = nullptr;
  if (!stacks) {
    stacks = static_cast<char*>(mmap(nullptr, STACK_BYTES * MAX_THREADS, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    for (unsigned i = 0; i < MAX_THREADS; ++i) mprotect(stacks + i * STACK_BYTES, 4096, PROT_NONE);
  }
  static char signal_stack[64 << 10];
  stack_t alternate{}, before{};
  alternate.ss_sp = signal_stack;
  alternate.ss_size = sizeof signal_stack;
  sigaltstack(&alternate, &before);
  struct sigaction action{}, segv{}, bus{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &segv);
  sigaction(SIGBUS, &action, &bus);
  int failed = sigsetjmp(escape, 1);
  if (!failed) run_all();
  running = nullptr;
  sigaction(SIGSEGV, &segv, nullptr);
  sigaction(SIGBUS, &bus, nullptr);
  sigaltstack(&before, nullptr);
  return failed;
}

// What -fsanitize calls.
void __ubsan_handle_type_mismatch_v1_abort(Location* at, unsigned long address) {
  fail_at(at, "misaligned access, address modulo 16 is", address % 16);
}
void __ubsan_handle_out_of_bounds_abort(Location* at, unsigned long index) {
  fail_at(at, "outside of an array, index", index);
}
void __ubsan_handle_shift_out_of_bounds_abort(Location* at, unsigned long, unsigned long by) {
  fail_at(at, "shift by", by);
}
void __ubsan_handle_divrem_overflow_abort(Location* at, unsigned long, unsigned long by) {
  fail_at(at, "division by", by);
}
}
