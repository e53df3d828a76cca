"""The residual stream between two sublayers: x + delta, and its RMS norm (arXiv 1910.07467), in one kernel."""

import mlx.core as mx

from macmoe.kernels.packed import KINDS
from macmoe.kernels.source import Kernel, launch

THREADS = 512

KERNEL = Kernel(
    name="add_norm",
    body="""
  threadgroup float partial[THREADS / 32];
  const uint token = threadgroup_position_in_grid.x;
  const uint thread_index = thread_index_in_threadgroup;
  float kept[PER_THREAD];
  float squares = 0.0f;
  for (int i = 0; i < PER_THREAD; i++) {
    const uint column = thread_index + i * THREADS;
    kept[i] = 0.0f;
    if (column < DIM) {
      float value = float(x[token * DIM + column]) + float(delta[token * DIM + column]);
#if HAS_BIAS
      value += float(bias[column]);
#endif
      const T rounded = T(value);
      sum[token * DIM + column] = rounded;
      kept[i] = float(rounded);
    }
    squares += kept[i] * kept[i];
  }
  squares = simd_sum(squares);
  if (thread_index_in_simdgroup == 0) partial[simdgroup_index_in_threadgroup] = squares;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  squares = 0.0f;
  for (int i = 0; i < THREADS / 32; i++) squares += partial[i];
  const float scale = metal::rsqrt(squares / DIM + EPS);
  for (int i = 0; i < PER_THREAD; i++) {
    const uint column = thread_index + i * THREADS;
    if (column < DIM) normed[token * DIM + column] = T(kept[i] * scale * float(weight[column]));
  }
""",
)


def reference(
    x: mx.array, delta: mx.array, weight: mx.array, eps: float, bias: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Return x + delta (+ bias) and its norm, both [tokens, dim]."""
    x = x + (delta if bias is None else delta + bias)
    return x, mx.fast.rms_norm(x, weight, eps)


def add_norm(
    x: mx.array, delta: mx.array, weight: mx.array, eps: float, bias: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """Do the same in one launch, rounding the sum once."""
    tokens, dim = x.shape
    inputs = {"x": x, "delta": delta, "weight": weight} | ({} if bias is None else {"bias": bias})
    threads = min(THREADS, -(-dim // 32) * 32)
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
            "PER_THREAD": -(-dim // threads),
        },
        groups=(tokens, 1, 1),
        threads=threads,
    )
    return total, normed
