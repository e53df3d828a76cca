"""The residual stream between two sublayers: x + delta, and its RMS norm (arXiv 1910.07467), at once."""

import mlx.core as mx

from macmoe.kernels.packed import KINDS, LOAD
from macmoe.kernels.source import Kernel, launch

MAX_THREADS = 1024  # of one threadgroup

KERNEL = Kernel(
    name="add_norm",
    header=LOAD,
    body="""
  threadgroup float partial[THREADS / 32];
  const uint column = thread_index_in_threadgroup * 8;
  const uint place = threadgroup_position_in_grid.x * DIM + column;
  float kept[8], other[8], factor[8];
  float squares = 0.0f;
  for (int i = 0; i < 8; i++) kept[i] = 0.0f;
  if (column < DIM) {
    load_floats(x + place, kept, 8);
    load_floats(delta + place, other, 8);
    load_floats(weight + column, factor, 8);
    for (int i = 0; i < 8; i++) kept[i] += other[i];
#if HAS_BIAS
    load_floats(bias + column, other, 8);
    for (int i = 0; i < 8; i++) kept[i] += other[i];
#endif
    for (int i = 0; i < 8; i++) {
      kept[i] = float(T(kept[i]));
      squares += kept[i] * kept[i];
    }
    store_floats(sum + place, kept);
  }
  squares = simd_sum(squares);
  if (thread_index_in_simdgroup == 0) partial[simdgroup_index_in_threadgroup] = squares;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  squares = 0.0f;
  for (int i = 0; i < THREADS / 32; i++) squares += partial[i];
  const float scale = metal::rsqrt(squares / DIM + EPS);
  if (column < DIM) {
    for (int i = 0; i < 8; i++) kept[i] *= scale * factor[i];
    store_floats(normed + place, kept);
  }
""",
)


def usable(dim: int) -> bool:
    """Return whether one threadgroup can hold a row of this width, 8 values in each thread."""
    return dim % 8 == 0 and dim <= 8 * MAX_THREADS


def add_norm(
    x: mx.array, delta: mx.array, weight: mx.array, eps: float, bias: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Return x + delta (+ bias), rounded once, and its norm, both [tokens, dim]."""
    tokens, dim = x.shape
    inputs = {"x": x, "delta": delta, "weight": weight} | ({} if bias is None else {"bias": bias})
    threads = -(-dim // 256) * 32
    total, normed = launch(
        KERNEL,
        inputs,
        {"sum": (x.shape, x.dtype), "normed": (x.shape, x.dtype)},
        {
            "T": x.dtype,
            "T_KIND": KINDS[x.dtype],
            "DIM": dim,
            "EPS": eps,
            "HAS_BIAS": bias is not None,
            "THREADS": threads,
        },
        groups=(tokens, 1, 1),
        threads=threads,
    )
    return total, normed
