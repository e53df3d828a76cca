"""Rows of a cache in kernels: numbers of the model's type, or 8 bits a number as mx.quantize packs them.

A buffer has one part, or three: packed rows, scales, offsets (macmoe.nn.packed_cache). A text names it once,
as `ROWS(name, ...)`, and is the same for both.
"""

from collections.abc import Sequence

import mlx.core as mx

from macmoe.kernels.packed import AFFINE, KINDS, LOAD, UNPACK, Packing

SUFFIXES = ("", "_scales", "_offsets")  # of the names of a buffer's parts

ROWS = (
    LOAD
    + UNPACK
    + """
#if MODE == PLAIN
struct Rows {
  device T* numbers;
};
#define ROWS(name, row, width) {(device T*)name + (row) * (width)}
#else
struct Rows {
  device uint* numbers;  // 4 in a word
  device T* scales;
  device T* offsets;
};
#define ROWS(name, row, width) \\
  {(device uint*)name + (row) * ((width) / 4), (device T*)name##_scales + (row) * ((width) / GROUP), \\
   (device T*)name##_offsets + (row) * ((width) / GROUP)}
#endif

// 8 neighboring numbers, from `place` on.
inline void load_row(Rows rows, uint place, thread float* values) {
#if MODE == PLAIN
  load_floats(rows.numbers + place, values, 8);
#else
  const uint2 words = *(const device uint2*)(rows.numbers + place / 4);
  unpack_word(words.x, values);
  unpack_word(words.y, values + 4);
  const float scale = float(rows.scales[place / GROUP]), offset = float(rows.offsets[place / GROUP]);
  for (int i = 0; i < 8; i++) values[i] = metal::fma(scale, values[i], offset);
#endif
}

#if MODE != PLAIN
// GROUP numbers, packed by one SIMD group; in threadgroup memory they become what a reader unpacks.
inline void pack_group(Rows rows, uint place, threadgroup float* values, uint lane) {
  const uint first = 4 * (lane % (GROUP / 4));  // of 4 numbers; the other lanes repeat them
  float mine[4], low = INFINITY, high = -INFINITY;
  for (int i = 0; i < 4; i++) {
    mine[i] = values[first + i];
    low = metal::min(low, mine[i]);
    high = metal::max(high, mine[i]);
  }
  low = simd_min(low);
  high = simd_max(high);
  const bool below = metal::abs(low) > metal::abs(high);
  const float edge = below ? low : high;  // the one farther from zero is exact, and so is zero
  float scale = metal::max((high - low) / 255.0f, 1e-7f);
  scale = below ? scale : -scale;
  const float steps = metal::rint(edge / scale);
  scale = steps == 0.0f ? scale : edge / steps;
  const float offset = steps == 0.0f ? 0.0f : edge;
  uint word = 0;
  for (int i = 0; i < 4; i++) {
    const float number = metal::min(metal::max(metal::rint((mine[i] - offset) / scale), 0.0f), 255.0f);
    word |= uint(number) << (8 * i);
    mine[i] = metal::fma(float(T(scale)), number, float(T(offset)));
  }
  if (lane < GROUP / 4) {
    rows.numbers[(place + first) / 4] = word;
    for (int i = 0; i < 4; i++) values[first + i] = mine[i];
  }
  if (lane == 0) {
    rows.scales[place / GROUP] = T(scale);
    rows.offsets[place / GROUP] = T(offset);
  }
}
#endif

// A row of numbers that T can hold, written by all SIMD groups. See `pack_group`.
inline void store_row(Rows rows, uint place, threadgroup float* values, uint width, uint simd, uint lane) {
#if MODE == PLAIN
  for (uint i = simd * 32 + lane; i < width; i += SIMD_GROUPS * 32) rows.numbers[place + i] = T(values[i]);
#else
  for (uint i = simd * GROUP; i < width; i += SIMD_GROUPS * GROUP) {
    pack_group(rows, place + i, values + i, lane);
  }
#endif
}
"""
)


def named(name: str, parts: Sequence[mx.array]) -> dict[str, mx.array]:
    """Return the parts of a buffer as a launch's inputs."""
    return {name + suffix: part for suffix, part in zip(SUFFIXES, parts, strict=False)}


def written(*names: str) -> tuple[str, ...]:
    """Return the inputs that a kernel writes into if it writes rows into buffers."""
    return tuple(name + suffix for name in names for suffix in SUFFIXES)


def constants(parts: Sequence[mx.array], width: int) -> dict[str, int | mx.Dtype]:
    """Return the macros of `ROWS` for a buffer with rows of `width` numbers; T comes from elsewhere."""
    if len(parts) == 1:
        packing, dtype = Packing(), parts[0].dtype
    else:
        packing, dtype = Packing(mode=AFFINE, bits=8, group_size=width // parts[1].shape[-1]), parts[1].dtype
    return {**packing.constants, "W": parts[0].dtype, "T_KIND": KINDS[dtype]}
