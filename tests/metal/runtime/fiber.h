// Switching between stacks: a few instructions on x86-64 and aarch64, ucontext elsewhere.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch, .-emulated_switch
)");
constexpr size_t SAVED_WORDS = 8, ENTRY_WORD = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  ldr x9, [x1]
  mov sp, x9
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulated_switch, .-emulated_switch
)");
constexpr size_t SAVED_WORDS = 20, ENTRY_WORD = 11;
#else
#define EMULATED_UCONTEXT
#include <ucontext.h>
#endif

#ifndef EMULATED_UCONTEXT
struct Context {
  void* stack_pointer;
};
extern "C" void emulated_switch(Context* from, Context* to) asm("emulated_switch");

inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  auto* words = reinterpret_cast<uintptr_t*>(stack + bytes) - SAVED_WORDS;
  for (size_t i = 0; i < SAVED_WORDS; ++i) words[i] = 0;
  words[ENTRY_WORD] = reinterpret_cast<uintptr_t>(entry);
  context.stack_pointer = words;
}
inline void switch_stack(Context& from, Context& to) { emulated_switch(&from, &to); }
#else
struct Context {
  ucontext_t state;
};
inline void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}
inline void switch_stack(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#endif
