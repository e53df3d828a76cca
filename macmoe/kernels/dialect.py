"""The small common dialect of Metal and CUDA in which kernels are written.

The texts are Metal: SIMD groups of 32, `threadgroup` arrays, `simd_*` functions, 16-byte loads through
`uint4`. CUDA gets the same text behind a preamble that defines Metal's words, after a few substitutions that
macros cannot make. Threadgroups have one dimension. All threads of a SIMD group take part in every `simd_*`
call.
"""

import re

import mlx.core as mx

METAL_TYPES = {
    mx.float32: "float",
    mx.bfloat16: "bfloat16_t",
    mx.float16: "half",
    mx.uint32: "uint",
    mx.uint8: "uchar",
}

METAL_PREAMBLE = """
#include <metal_stdlib>
using namespace metal;
"""

CUDA_PREAMBLE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#define threadgroup_position_in_grid blockIdx
#define threadgroups_per_grid gridDim
#define thread_index_in_threadgroup threadIdx.x
#define thread_index_in_simdgroup (threadIdx.x & 31u)
#define simdgroup_index_in_threadgroup (threadIdx.x >> 5)
typedef unsigned int uint;
typedef unsigned long long ulong;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef __nv_bfloat16 bfloat16_t;
typedef __half2 half2;
enum class mem_flags { mem_threadgroup };
#define threadgroup_barrier(flags) __syncthreads()
template <typename To, typename From>
__device__ inline To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}
template <typename V>
__device__ inline V simd_shuffle(V value, uint lane) { return __shfl_sync(~0u, value, lane); }
template <typename V>
__device__ inline V simd_shuffle_xor(V value, uint mask) { return __shfl_xor_sync(~0u, value, mask); }
template <typename V>
__device__ inline V simd_sum(V value) {
  for (uint mask = 16; mask > 0; mask >>= 1) value += simd_shuffle_xor(value, mask);
  return value;
}
__device__ inline uint simd_prefix_exclusive_sum(uint value) {
  uint sum = value;
  for (uint distance = 1; distance < 32; distance <<= 1) {
    const uint below = __shfl_up_sync(~0u, sum, distance);
    if ((threadIdx.x & 31u) >= distance) sum += below;
  }
  return sum - value;
}
template <typename V>
__device__ inline V simd_max(V value) {
  for (uint mask = 16; mask > 0; mask >>= 1) value = ::max(value, simd_shuffle_xor(value, mask));
  return value;
}
template <typename V>
__device__ inline V simd_min(V value) {
  for (uint mask = 16; mask > 0; mask >>= 1) value = ::min(value, simd_shuffle_xor(value, mask));
  return value;
}
namespace metal {
__device__ inline float abs(float x) { return ::fabsf(x); }
__device__ inline float rint(float x) { return ::rintf(x); }
__device__ inline float exp(float x) { return ::expf(x); }
__device__ inline float rsqrt(float x) { return ::rsqrtf(x); }
__device__ inline float max(float a, float b) { return ::fmaxf(a, b); }
__device__ inline float min(float a, float b) { return ::fminf(a, b); }
__device__ inline uint min(uint a, uint b) { return ::min(a, b); }
__device__ inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
namespace fast {
__device__ inline float exp(float x) { return ::__expf(x); }
}
namespace precise {
__device__ inline float cos(float x) { return ::cosf(x); }
__device__ inline float sin(float x) { return ::sinf(x); }
}
}
"""


# In this order. CUDA's own __device__ is spelled with the word `device`, so that one cannot be a macro.
SUBSTITUTIONS = (
    (r"\bthreadgroup (const )?(\w+\s*\*)", r"\1\2"),  # a parameter: any pointer
    (r"\bthreadgroup ", "__shared__ "),
    (r"\b(device|thread) ", ""),
    (r"(?m)^inline ", "__device__ inline "),
)


def to_cuda(text: str) -> str:
    """Return a Metal text with CUDA's words for shared memory, pointers and functions on the device."""
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    return text
