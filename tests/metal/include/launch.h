// Runs a kernel over a grid; included behind it, when `run_kernel` and `buffers` are defined.
#pragma once

extern "C" char __start_threadgroup_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_threadgroup_memory[] __attribute__((weak, visibility("hidden")));

namespace emulator {

struct Buffer {
  const char* name;
  char* data;      // the caller's
  size_t size;
  int writable;    // copied back
  char* region;    // guard page, data that ends at a page's end, guard page
  size_t region_size;
};

inline size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }

inline char* inside(const Buffer& buffer) { return buffer.region + buffer.region_size - page() - buffer.size; }

inline void guard(Buffer& buffer, int poison) {
  const size_t room = (buffer.size + page() - 1) / page() * page();
  buffer.region_size = room + 2 * page();
  buffer.region = static_cast<char*>(
      mmap(nullptr, buffer.region_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(buffer.region + page(), poison, room);
  mprotect(buffer.region, page(), PROT_NONE);
  mprotect(buffer.region + buffer.region_size - page(), page(), PROT_NONE);
}

inline Buffer* guarded;
inline int guarded_count;

inline void on_fault(int, siginfo_t* info, void*) {
  const char* place = static_cast<const char*>(info->si_addr);
  const char* name = "no buffer";
  for (int i = 0; i < guarded_count; i++) {
    const Buffer& buffer = guarded[i];
    if (place >= buffer.region && place < buffer.region + buffer.region_size) name = buffer.name;
  }
  std::snprintf(error.text, sizeof error.text, "access outside of %s in threadgroup (%u, %u, %u)", name,
                group_position.x, group_position.y, group_position.z);
  siglongjmp(escape, 1);
}

inline bool fail(const char* what, uint index) {
  std::snprintf(error.text, sizeof error.text, "%s (thread %u of threadgroup (%u, %u, %u), waiting at %s)", what, index,
                group_position.x, group_position.y, group_position.z, fibers[index].waits_for);
  return false;
}

// Let those go on whose partners have all arrived; false if nobody can.
inline bool release() {
  bool any = false, all_at_barrier = true, some_live = false;
  for (uint begin = 0; begin < thread_count; begin += 32) {
    bool together = true, here = false;
    const char* operation = nullptr;
    for (uint i = begin; i < begin + 32; i++) {
      if (fibers[i].state == DONE) continue;
      here = some_live = true;
      if (fibers[i].state != AT_BARRIER) all_at_barrier = false;
      if (fibers[i].state != AT_SIMD) together = false;
      else if (operation && std::strcmp(operation, fibers[i].waits_for)) return fail("divergent SIMD operations", i);
      else operation = fibers[i].waits_for;
    }
    if (here && together) {
      for (uint i = begin; i < begin + 32; i++) {
        if (fibers[i].state == DONE) return fail("a SIMD operation without all lanes", i);
        fibers[i].state = READY;
      }
      any = true;
    }
  }
  if (any) return true;
  if (some_live && all_at_barrier) {
    for (uint i = 0; i < thread_count; i++) {
      if (fibers[i].state == DONE) return fail("a barrier that not all threads reach", i);
      fibers[i].state = READY;
    }
    return true;
  }
  for (uint i = 0; i < thread_count; i++) {
    if (fibers[i].state != DONE) return fail("threads wait for different things", i);
  }
  return false;
}

inline bool run_group(const uint* order) {
  for (uint i = 0; i < thread_count; i++) {
    Fiber& fiber = fibers[i];
    fiber.state = READY;
    fiber.waits_for = "nothing";
    fiber.operations = 0;
    simds[i / 32].live[i % 32] = true;
    start_context(fiber.context, stacks + i * STACK, STACK, enter);
  }
  for (;;) {
    uint done = 0;
    for (uint i = 0; i < thread_count; i++) {
      current = order[i];
      if (fibers[current].state == READY) switch_context(scheduler, fibers[current].context);
      done += fibers[current].state == DONE;
    }
    if (done == thread_count) return true;
    if (!release()) return false;
  }
}

inline bool run_grid(const uint* groups, const uint* order, int poison) {
  for (uint z = 0; z < groups[2]; z++) {
    for (uint y = 0; y < groups[1]; y++) {
      for (uint x = 0; x < groups[0]; x++) {
        group_position = {x, y, z};
        if (__start_threadgroup_memory) {
          std::memset(__start_threadgroup_memory, poison, __stop_threadgroup_memory - __start_threadgroup_memory);
        }
        if (!run_group(order)) return false;
      }
    }
  }
  return true;
}

}  // namespace emulator

// Returns null, or what went wrong. `poison` fills memory that nobody has written.
extern "C" const char* launch(emulator::Buffer* given, int count, const uint* groups, uint threads, const uint* order,
                              int poison) {
  using namespace emulator;
  error.text[0] = 0;
  thread_count = threads;
  group_count = {groups[0], groups[1], groups[2]};
  kernel = run_kernel;
  stacks = static_cast<char*>(malloc(threads * STACK));
  guarded = given;
  guarded_count = count;
  for (int i = 0; i < count; i++) {
    guard(given[i], poison);
    if (given[i].data && given[i].writable != 2) std::memcpy(inside(given[i]), given[i].data, given[i].size);
    buffers[i] = inside(given[i]);
  }
  static char signal_stack[64 * 1024];
  stack_t other = {}, before_stack = {};
  other.ss_sp = signal_stack;
  other.ss_size = sizeof signal_stack;
  sigaltstack(&other, &before_stack);
  struct sigaction action = {}, before_segv, before_bus;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &before_segv);
  sigaction(SIGBUS, &action, &before_bus);
  if (sigsetjmp(escape, 1) == 0) run_grid(groups, order, poison);
  sigaction(SIGSEGV, &before_segv, nullptr);
  sigaction(SIGBUS, &before_bus, nullptr);
  sigaltstack(&before_stack, nullptr);
  for (int i = 0; i < count; i++) {
    if (given[i].writable) std::memcpy(given[i].data, inside(given[i]), given[i].size);
    munmap(given[i].region, given[i].region_size);
  }
  free(stacks);
  return error.text[0] ? error.text : nullptr;
}
