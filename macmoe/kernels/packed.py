"""Unpack 32 consecutive weights of a row, in every form in which checkpoints store them.

The layouts are those of mx.quantize (checked against mx.dequantize): the first value in the lowest bits of a
word; affine: scale * q + bias; MXFP4 (E2M1) and MXFP8 (E4M3): E8M0 scales per 32 (OCP Microscaling Formats
v1.0).

No table and no integer conversion: an E2M1 or E4M3 pattern moved to the top bits of a half is the value times
a power of two, subnormals included; an integer put into the mantissa of the half 1024 is 1024 + q.
"""

from dataclasses import dataclass

import mlx.core as mx

CHUNK = 32
PLAIN, AFFINE, MXFP4, MXFP8 = range(4)
MODES = {"affine": AFFINE, "mxfp4": MXFP4, "mxfp8": MXFP8}
BITS = {AFFINE: (4, 8), MXFP4: (4,), MXFP8: (8,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a stack of matrices is stored: MLX's mode, bits and group size, or plain."""

    mode: int = PLAIN
    bits: int = 0
    group_size: int = CHUNK

    @property
    def constants(self) -> dict[str, int]:
        """The macros of `UNPACK`."""
        return {"MODE": self.mode, "BITS": self.bits, "GROUP": self.group_size}


def packing_of(mode: str, bits: int, group_size: int) -> Packing | None:
    """Return a packing that the kernels read, None for all others."""
    known = MODES.get(mode)
    if known is None or bits not in BITS[known] or group_size % CHUNK:
        return None
    return Packing(mode=known, bits=bits, group_size=group_size)


def weight_dtype(packing: Packing, dtype: mx.Dtype) -> mx.Dtype:
    """Return the type of the weight array: words if packed."""
    return dtype if packing.mode == PLAIN else mx.uint32


LOAD = """
#define IS_FLOAT 1
#define IS_HALF 2
#define IS_BFLOAT 3

// Two neighboring 16-bit values of a word.
inline float low16(uint word) {
#if T_KIND == IS_BFLOAT
  return as_type<float>(word << 16);
#else
  return float(as_type<half2>(word).x);
#endif
}
inline float high16(uint word) {
#if T_KIND == IS_BFLOAT
  return as_type<float>(word & 0xffff0000u);
#else
  return float(as_type<half2>(word).y);
#endif
}

// `count` activations or plain weights as floats, read 16 bytes at a time.
inline void load_floats(const device T* source, thread float* values, int count) {
#if T_KIND == IS_FLOAT
  for (int i = 0; i < count / 4; i++) {
    const uint4 four = ((const device uint4*)source)[i];
    values[4 * i] = as_type<float>(four.x);
    values[4 * i + 1] = as_type<float>(four.y);
    values[4 * i + 2] = as_type<float>(four.z);
    values[4 * i + 3] = as_type<float>(four.w);
  }
#else
  for (int i = 0; i < count / 8; i++) {
    const uint4 eight = ((const device uint4*)source)[i];
    values[8 * i] = low16(eight.x);
    values[8 * i + 1] = high16(eight.x);
    values[8 * i + 2] = low16(eight.y);
    values[8 * i + 3] = high16(eight.y);
    values[8 * i + 4] = low16(eight.z);
    values[8 * i + 5] = high16(eight.z);
    values[8 * i + 6] = low16(eight.w);
    values[8 * i + 7] = high16(eight.w);
  }
#endif
}

// 8 floats rounded to activations, written 16 bytes at a time.
inline void store_floats(device T* target, thread const float* values) {
#if T_KIND == IS_FLOAT
  for (int i = 0; i < 2; i++) {
    uint4 four;
    four.x = as_type<uint>(values[4 * i]);
    four.y = as_type<uint>(values[4 * i + 1]);
    four.z = as_type<uint>(values[4 * i + 2]);
    four.w = as_type<uint>(values[4 * i + 3]);
    ((device uint4*)target)[i] = four;
  }
#else
  uint pairs[4];
  for (int i = 0; i < 4; i++) {
    pairs[i] = uint(as_type<ushort>(T(values[2 * i]))) | uint(as_type<ushort>(T(values[2 * i + 1]))) << 16;
  }
  uint4 eight;
  eight.x = pairs[0];
  eight.y = pairs[1];
  eight.z = pairs[2];
  eight.w = pairs[3];
  *(device uint4*)target = eight;
#endif
}
"""

UNPACK = """
#define PLAIN 0
#define AFFINE 1
#define MXFP4 2
#define MXFP8 3

#if MODE == PLAIN
#define ROW_WORDS(columns) (columns)
#else
#define ROW_WORDS(columns) ((columns) / 32 * BITS)
#endif

// Two halves in one word, as floats.
inline void put(uint halves, thread float* low, thread float* high) {
  const half2 both = as_type<half2>(halves);
#if MODE == AFFINE
  *low = float(both.x) - 1024.0f;
  *high = float(both.y) - 1024.0f;
#else
  *low = float(both.x);
  *high = float(both.y);
#endif
}

#if MODE == AFFINE && BITS == 4
inline void unpack_word(uint word, thread float* w) {
  for (int i = 0; i < 4; i++) put(((word >> (4 * i)) & 0x000f000fu) | 0x64006400u, w + i, w + 4 + i);
}
#elif MODE == AFFINE && BITS == 8
inline void unpack_word(uint word, thread float* w) {
  put((word & 0x00ff00ffu) | 0x64006400u, w, w + 2);
  put(((word >> 8) & 0x00ff00ffu) | 0x64006400u, w + 1, w + 3);
}
#elif MODE == MXFP4
inline void unpack_word(uint word, thread float* w) {  // times 2^-14
  for (int i = 0; i < 4; i++) {
    const uint pair = word >> (4 * i);
    put(((pair << 12) & 0x80008000u) | ((pair << 9) & 0x0e000e00u), w + i, w + 4 + i);
  }
}
#elif MODE == MXFP8
inline void unpack_word(uint word, thread float* w) {  // times 2^-8
  for (int i = 0; i < 2; i++) {
    const uint pair = word >> (8 * i);
    put(((pair << 8) & 0x80008000u) | ((pair << 7) & 0x3f803f80u), w + i, w + 2 + i);
  }
}
#endif

// 32 weights as floats, up to the scale and bias of their group.
inline void unpack(const device W* chunk, thread float* w) {
#if MODE == PLAIN
  load_floats(chunk, w, 32);
#else
  const int step = 32 / BITS;
  for (int i = 0; i < BITS / 4; i++) {
    const uint4 words = ((const device uint4*)chunk)[i];
    unpack_word(words.x, w + (4 * i) * step);
    unpack_word(words.y, w + (4 * i + 1) * step);
    unpack_word(words.z, w + (4 * i + 2) * step);
    unpack_word(words.w, w + (4 * i + 3) * step);
  }
#endif
}

inline float dot32(thread const float* w, thread const float* x) {
  float sum = 0.0f;
  for (int i = 0; i < 32; i++) sum = metal::fma(w[i], x[i], sum);
  return sum;
}

inline float sum32(thread const float* x) {
  float sum = 0.0f;
  for (int i = 0; i < 32; i++) sum += x[i];
  return sum;
}

// What a chunk adds to a product: `dot` is the bare weights times x, `total` the sum of x, `i` the group.
#if MODE == PLAIN
#define SCALED(scales, offsets, i, dot, total) (dot)
#elif MODE == AFFINE
#define SCALED(scales, offsets, i, dot, total) \\
  (float(scales[i]) * (dot) + float(offsets[i]) * (total))
#else
#define BARE (MODE == MXFP4 ? 16384.0f : 256.0f)
#define SCALED(scales, offsets, i, dot, total) ((dot) * BARE * e8m0(scales[i]))
inline float e8m0(uchar exponent) {
  return as_type<float>(exponent == 0 ? 0x00400000u : uint(exponent) << 23);
}
#endif
"""

KINDS = {mx.float32: 1, mx.float16: 2, mx.bfloat16: 3}
