"""The residual stream between two sublayers: x + delta, and its RMS norm (arXiv 1910.07467), at once.

Before a mixture of experts the router's logits come from the same launch: a threadgroup per expert computes
sum and norm for itself, since reading two rows again costs less than waiting for another kernel.
"""

from dataclasses import dataclass

import mlx.core as mx

from macmoe.kernels.packed import KINDS, LOAD
from macmoe.kernels.source import Constant, Kernel, Shaped, launch

MAX_THREADS = 1024  # of one threadgroup
SIMD_GROUPS = 8  # of a threadgroup that computes a logit

TEXT = """
  threadgroup float partial[THREADS / 32];
#if EXPERTS
  threadgroup float products[THREADS / 32];
  const uint expert = threadgroup_position_in_grid.x;
  float own[PASSES][8];  // of the expert's row, loaded before the norm is known: memory takes longest
#endif
  const uint first = thread_index_in_threadgroup * 8;
  const uint row = threadgroup_position_in_grid.y * DIM;
  float kept[PASSES][8], factor[PASSES][8], other[8];
  float squares = 0.0f;
  for (uint pass = 0; pass < PASSES; pass++) {
    const uint column = pass * THREADS * 8 + first;
    if (column < DIM) {
      load_floats(x + row + column, kept[pass], 8);
      load_floats(delta + row + column, other, 8);
      load_floats(weight + column, factor[pass], 8);
#if EXPERTS
      load_floats(router + expert * DIM + column, own[pass], 8);
#endif
      for (int i = 0; i < 8; i++) kept[pass][i] += other[i];
#if HAS_BIAS
      load_floats(bias + column, other, 8);
      for (int i = 0; i < 8; i++) kept[pass][i] += other[i];
#endif
      for (int i = 0; i < 8; i++) {
        kept[pass][i] = float(T(kept[pass][i]));
        squares += kept[pass][i] * kept[pass][i];
      }
      if (threadgroup_position_in_grid.x == 0) store_floats(sum + row + column, kept[pass]);
    }
  }
  squares = simd_sum(squares);
  if (thread_index_in_simdgroup == 0) partial[simdgroup_index_in_threadgroup] = squares;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  squares = 0.0f;
  for (int i = 0; i < THREADS / 32; i++) squares += partial[i];
  const float scale = metal::rsqrt(squares / DIM + EPS);
#if EXPERTS
  float logit = 0.0f;
#endif
  for (uint pass = 0; pass < PASSES; pass++) {
    const uint column = pass * THREADS * 8 + first;
    if (column < DIM) {
      for (int i = 0; i < 8; i++) kept[pass][i] = float(T(kept[pass][i] * (scale * factor[pass][i])));
      if (threadgroup_position_in_grid.x == 0) store_floats(normed + row + column, kept[pass]);
#if EXPERTS
      for (int i = 0; i < 8; i++) logit = metal::fma(kept[pass][i], own[pass][i], logit);
#endif
    }
  }
#if EXPERTS
  logit = simd_sum(logit);
  if (thread_index_in_simdgroup == 0) products[simdgroup_index_in_threadgroup] = logit;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index_in_threadgroup == 0) {
    logit = 0.0f;
    for (int i = 0; i < THREADS / 32; i++) logit += products[i];
#if HAS_ROUTER_BIAS
    logit += float(router_bias[expert]);
#endif
    logits[threadgroup_position_in_grid.y * EXPERTS + expert] = logit;
  }
#endif
"""

ADD_NORM = Kernel(name="add_norm", header=LOAD, body=TEXT)
ADD_NORM_LOGITS = Kernel(name="add_norm_logits", header=LOAD, body=TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Where a sublayer's output joins the residual stream.

    Attributes:
        norm: Weight of the norm that follows, [dim].
        eps: Of this norm.
        bias: Of the sublayer's output, [dim], where it is still to be added.
    """

    norm: mx.array
    eps: float
    bias: mx.array | None = None


def usable(dim: int) -> bool:
    """Return whether one threadgroup can hold a row of this width, 8 values in each thread."""
    return dim % 8 == 0 and dim <= 8 * MAX_THREADS


def add_norm(x: mx.array, delta: mx.array, joint: Joint) -> tuple[mx.array, mx.array]:
    """Return x + delta (+ bias), rounded once, and its norm, both [tokens, dim]."""
    tokens, dim = x.shape
    threads = -(-dim // 256) * 32
    total, normed = launch(
        ADD_NORM,
        _inputs(x, delta, joint),
        _outputs(x),
        _constants(x, joint, threads) | {"EXPERTS": 0},
        groups=(1, tokens, 1),
        threads=threads,
    )
    return total, normed


def add_norm_logits(
    x: mx.array, delta: mx.array, joint: Joint, router: mx.array, router_bias: mx.array | None = None
) -> tuple[mx.array, mx.array, mx.array]:
    """Return what `add_norm` does, and the product of the rounded norm with the router's matrix.

    Args:
        x: [tokens, dim].
        delta: [tokens, dim].
        joint: Norm and bias.
        router: [experts, dim].
        router_bias: [experts].

    Returns:
        Sum and norm, both [tokens, dim], and logits [tokens, experts] in float32.
    """
    tokens, experts = len(x), len(router)
    threads = 32 * SIMD_GROUPS
    total, normed, logits = launch(
        ADD_NORM_LOGITS,
        _inputs(x, delta, joint)
        | {"router": router}
        | ({} if router_bias is None else {"router_bias": router_bias}),
        _outputs(x) | {"logits": ((tokens, experts), mx.float32)},
        _constants(x, joint, threads) | {"EXPERTS": experts, "HAS_ROUTER_BIAS": router_bias is not None},
        groups=(experts, tokens, 1),
        threads=threads,
    )
    return total, normed, logits


def _inputs(x: mx.array, delta: mx.array, joint: Joint) -> dict[str, mx.array]:
    bias = {} if joint.bias is None else {"bias": joint.bias}
    return {"x": x, "delta": delta, "weight": joint.norm} | bias


def _outputs(x: mx.array) -> dict[str, Shaped]:
    return {"sum": (x.shape, x.dtype), "normed": (x.shape, x.dtype)}


def _constants(x: mx.array, joint: Joint, threads: int) -> dict[str, Constant]:
    dim = x.shape[-1]
    return {
        "T": x.dtype,
        "T_KIND": KINDS[x.dtype],
        "DIM": dim,
        "EPS": joint.eps,
        "HAS_BIAS": joint.bias is not None,
        "THREADS": threads,
        "PASSES": -(-dim // (8 * threads)),
    }
