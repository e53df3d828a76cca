"""Chosen experts' MLPs in two launches: gate, up and activation; then down, weighted and summed.

Two, because a row of `down` needs all rows of `gate_up`: in one kernel an expert would be pinned to one
threadgroup. Every pair of rows is one SIMD group's work, and each weight is read once, also where several
tokens share an expert: the first (token, slot) pair of an expert takes the others of the call with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from macmoe.kernels.packed import CHUNK, KINDS, LOAD, UNPACK, Packing, weight_dtype
from macmoe.kernels.source import Kernel, launch

NONE, SWIGLU, CLAMPED_SWIGLU = range(3)
MAX_PAIRS = 256  # (token, slot) pairs of one call; with more, sorted products win
TOGETHER = 4  # tokens whose products are summed while a weight is in registers
SUM_ROWS = 4  # rows of `down` in one threadgroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The matrices of all experts as stored, [experts, out, in]; `bias` is added to the product."""

    packing: Packing
    weight: mx.array
    scales: mx.array | None = None
    offsets: mx.array | None = None
    bias: mx.array | None = None

    @classmethod
    def fitting(cls, packing: Packing, parts: Mapping[str, mx.array], dtype: mx.Dtype) -> "Stack | None":
        """Return MLX's parts (weight, scales, biases, bias) as a stack, None if the kernels cannot read them.

        Args:
            packing: How they are stored.
            parts: By MLX's names.
            dtype: Of the activations: floating-point parts have to have the same.
        """
        stack = cls(
            packing=packing,
            weight=parts["weight"],
            scales=parts.get("scales"),
            offsets=parts.get("biases"),
            bias=parts.get("bias"),
        )
        same = all(part.dtype in {dtype, mx.uint32, mx.uint8} for part in parts.values())
        return stack if same and stack.columns % CHUNK == 0 else None

    @property
    def columns(self) -> int:
        """Inputs of each matrix."""
        bits = self.packing.bits
        return self.weight.shape[-1] * 32 // bits if bits else self.weight.shape[-1]

    def arrays(self, suffix: str = "") -> dict[str, mx.array]:
        """Return the arrays there are, under their names in the texts."""
        named = {"w": self.weight, "scales": self.scales, "offsets": self.offsets, "bias": self.bias}
        return {f"{name}{suffix}": array for name, array in named.items() if array is not None}


def usable(gate_up: Stack, down: Stack) -> bool:
    """Return whether the kernels can work on experts of this size."""
    return gate_up.weight.shape[1] == 2 * down.columns and down.weight.shape[1] % SUM_ROWS == 0


POINTERS = """
#if SHARED
#define OF_EXPERT(array, stride) \\
  (expert < EXPERTS ? array + expert * (stride) : array##_shared)
#else
#define OF_EXPERT(array, stride) (array + expert * (stride))
#endif
#define COLUMN_GROUPS (COLUMNS / GROUP)
"""

ROWS_KERNEL = Kernel(
    name="expert_rows",
    header=LOAD + UNPACK + POINTERS,
    body="""
  const uint lane = thread_index_in_simdgroup;
  const uint first = threadgroup_position_in_grid.y;
  const uint expert = experts[first];
#if PAIRS > SLOTS
  // The pairs of this expert; a pair that is not its first leaves the work to that one.
  threadgroup ushort members[PAIRS];
  uint count = 0;
  uint earlier = 0;
  for (uint base = 0; base < PAIRS; base += 32) {
    const uint pair = base + lane;
    const uint same = pair < PAIRS ? uint(experts[pair] == expert) : 0u;
    earlier += simd_sum(pair < first ? same : 0u);
    const uint place = count + simd_prefix_exclusive_sum(same);
    if (same && simdgroup_index_in_threadgroup == 0) members[place] = ushort(pair);
    count += simd_sum(same);
  }
  if (earlier > 0) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);
#else
  const uint count = 1;
#endif
  const uint row = threadgroup_position_in_grid.x * SIMD_GROUPS + simdgroup_index_in_threadgroup;
  const device W* matrix = OF_EXPERT(w, ulong(STACK_ROWS) * ROW_WORDS(COLUMNS));
#if MODE != PLAIN
  const device S* all_scales = OF_EXPERT(scales, ulong(STACK_ROWS) * COLUMN_GROUPS);
#endif
#if MODE == AFFINE
  const device T* all_offsets = OF_EXPERT(offsets, ulong(STACK_ROWS) * COLUMN_GROUPS);
#endif
  for (uint begin = 0; begin < count; begin += AT_ONCE) {
    float sums[HALVES][AT_ONCE];
    for (int half_ = 0; half_ < HALVES; half_++) {
      for (int n = 0; n < AT_ONCE; n++) sums[half_][n] = 0.0f;
    }
    for (uint chunk = lane; chunk < COLUMNS / 32; chunk += 32) {
      float w_values[HALVES][32];
      for (int half_ = 0; half_ < HALVES; half_++) {
        unpack(matrix + (row + half_ * ROWS) * ROW_WORDS(COLUMNS) + chunk * ROW_WORDS(32), w_values[half_]);
      }
      for (int n = 0; n < AT_ONCE; n++) {
        if (begin + n < count) {
#if PAIRS > SLOTS
          const uint pair = members[begin + n];
#else
          const uint pair = first;
#endif
          float x_values[32];
          load_floats(x + (X_PER_PAIR ? pair : pair / SLOTS) * COLUMNS + chunk * 32, x_values, 32);
          const float total = sum32(x_values);
          for (int half_ = 0; half_ < HALVES; half_++) {
            const uint group = (row + half_ * ROWS) * COLUMN_GROUPS + chunk * 32 / GROUP;
            sums[half_][n] += SCALED(all_scales, all_offsets, group, dot32(w_values[half_], x_values), total);
          }
        }
      }
    }
    for (int n = 0; n < AT_ONCE; n++) {
      if (begin + n < count) {
#if PAIRS > SLOTS
        const uint pair = members[begin + n];
#else
        const uint pair = first;
#endif
        float gate = simd_sum(sums[0][n]);
#if HAS_BIAS
        const device T* biases = OF_EXPERT(bias, STACK_ROWS);
        gate += float(biases[row]);
#endif
#if HALVES == 2
        float up = simd_sum(sums[1][n]);
#if HAS_BIAS
        up += float(biases[row + ROWS]);
#endif
#if ACTIVATION == 2
        gate = metal::min(gate, LIMIT);
        up = metal::max(metal::min(up, LIMIT), -LIMIT);
        gate = (up + 1.0f) * gate / (1.0f + metal::exp(-1.702f * gate));
#else
        gate = up * gate / (1.0f + metal::exp(-gate));
#endif
#endif
        if (lane == 0) y[pair * ROWS + row] = T(gate);
      }
    }
  }
""",
)

SUM_KERNEL = Kernel(
    name="expert_sum",
    header=LOAD + UNPACK + POINTERS,
    body="""
  threadgroup float products[SLOTS][SUM_ROWS];
  const uint lane = thread_index_in_simdgroup;
  const uint slot = simdgroup_index_in_threadgroup;
  const uint first_row = threadgroup_position_in_grid.x * SUM_ROWS;
  const uint expert = experts[slot];
  const device W* matrix = OF_EXPERT(w, ulong(ROWS) * ROW_WORDS(COLUMNS));
#if MODE != PLAIN
  const device S* all_scales = OF_EXPERT(scales, ulong(ROWS) * COLUMN_GROUPS);
#endif
#if MODE == AFFINE
  const device T* all_offsets = OF_EXPERT(offsets, ulong(ROWS) * COLUMN_GROUPS);
#endif
  float sums[SUM_ROWS];
  for (int r = 0; r < SUM_ROWS; r++) sums[r] = 0.0f;
  for (uint chunk = lane; chunk < COLUMNS / 32; chunk += 32) {
    float x_values[32];
    load_floats(x + slot * COLUMNS + chunk * 32, x_values, 32);
    const float total = sum32(x_values);
    for (int r = 0; r < SUM_ROWS; r++) {
      float w_values[32];
      unpack(matrix + (first_row + r) * ROW_WORDS(COLUMNS) + chunk * ROW_WORDS(32), w_values);
      const uint group = (first_row + r) * COLUMN_GROUPS + chunk * 32 / GROUP;
      sums[r] += SCALED(all_scales, all_offsets, group, dot32(w_values, x_values), total);
    }
  }
  for (int r = 0; r < SUM_ROWS; r++) {
    float product = simd_sum(sums[r]);
#if HAS_BIAS
    const device T* biases = OF_EXPERT(bias, ROWS);
    product += float(biases[first_row + r]);
#endif
    if (lane == 0) products[slot][r] = product * weights[slot];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint thread_index = thread_index_in_threadgroup;
  if (thread_index < SUM_ROWS) {
    float sum = 0.0f;
    for (int s = 0; s < SLOTS; s++) sum += products[s][thread_index];
    y[first_row + thread_index] = T(sum);
  }
""",
)


def _constants(stack: Stack, x: mx.array, slots: int, shared: bool) -> dict[str, int | mx.Dtype]:
    return {
        **stack.packing.constants,
        "T": x.dtype,
        "T_KIND": KINDS[x.dtype],
        "W": weight_dtype(stack.packing, x.dtype),
        "S": mx.uint8 if stack.offsets is None else x.dtype,
        "COLUMNS": x.shape[-1],
        "EXPERTS": stack.weight.shape[0],
        "SLOTS": slots,
        "SHARED": shared,
        "HAS_BIAS": stack.bias is not None,
    }


def expert_rows(
    stack: Stack,
    x: mx.array,
    experts: mx.array,
    *,
    activation: int = NONE,
    limit: float = 0.0,
    shared: Stack | None = None,
) -> mx.array:
    """Multiply tokens by the matrices of their experts.

    Args:
        stack: [experts, rows, dim]; with an activation 2 * rows, gate rows first.
        x: [tokens, dim], or [tokens, slots, dim] with a row of its own for each slot.
        experts: [tokens, slots], uint32.
        activation: What joins gate and up.
        limit: Of the clamped activation.
        shared: One more expert of the same form, number `experts`.

    Returns:
        [tokens, slots, rows].
    """
    tokens, slots = experts.shape
    halves = 1 if activation == NONE else 2
    stack_rows = stack.weight.shape[1]
    rows = stack_rows // halves
    simd_groups = next(count for count in (8, 4, 2, 1) if rows % count == 0)
    constants = _constants(stack, x, slots, shared is not None) | {
        "PAIRS": experts.size,
        "ROWS": rows,
        "STACK_ROWS": stack_rows,
        "HALVES": halves,
        "ACTIVATION": activation,
        "LIMIT": float(limit),
        "X_PER_PAIR": x.ndim == 3,
        "SIMD_GROUPS": simd_groups,
        "AT_ONCE": 1 if tokens == 1 else TOGETHER,
    }
    inputs = {"x": x, "experts": experts} | stack.arrays() | (shared.arrays("_shared") if shared else {})
    (y,) = launch(
        ROWS_KERNEL,
        inputs,
        {"y": ((tokens, slots, rows), x.dtype)},
        constants,
        groups=(rows // simd_groups, experts.size, 1),
        threads=32 * simd_groups,
    )
    return y


def expert_sum(
    stack: Stack, x: mx.array, experts: mx.array, weights: mx.array, shared: Stack | None = None
) -> mx.array:
    """Return the weighted sum [1, dim] of one token's [1, slots, hidden_dim] times its experts' matrices."""
    slots = experts.size
    rows = stack.weight.shape[1]
    constants = _constants(stack, x, slots, shared is not None) | {"ROWS": rows, "SUM_ROWS": SUM_ROWS}
    inputs = {"x": x, "experts": experts, "weights": weights}
    inputs |= stack.arrays() | (shared.arrays("_shared") if shared else {})
    (y,) = launch(
        SUM_KERNEL,
        inputs,
        {"y": ((1, rows), x.dtype)},
        constants,
        groups=(rows // SUM_ROWS, 1, 1),
        threads=32 * slots,
    )
    return y
