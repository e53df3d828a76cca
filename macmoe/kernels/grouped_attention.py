"""Grouped-query attention of one new token per sequence: bias, QK norm, RoPE, cache and scores in one launch.

A threadgroup serves all query heads of one key/value head over one part of a sequence's cache, so keys and
values are read once; macmoe.kernels.parts joins the parts. The softmax runs along (arXiv 1805.02867), a sink
is one more logit in its sum (arXiv 2508.10925). A key is read by `LANES` neighboring lanes, 8 values each, so
a SIMD group works on several keys. The size of the buffers is an argument, not a constant: another size, as
when a cache grows, needs no other compilation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from macmoe.kernels import rows
from macmoe.kernels.parts import LIMITS, combine
from macmoe.kernels.source import SHARED_BYTES, Kernel, launch

SIMD_GROUPS = 8
TARGET_GROUPS = 256  # threadgroups that fill a GPU
LEAST_ROWS = 64  # of the cache, for which one more threadgroup pays
AHEAD = 2  # keys and values of a lane that are on their way together
AT_ONCE = 4  # query heads of one SIMD group: what fits into registers


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The arrangement of one layer.

    Attributes:
        heads: Query heads.
        kv_heads: Key/value heads.
        head_dim: Width of one head.
        scale: Multiplies the scores.
        eps: Of the QK norm.
        window: Whether only a short window is attended to, which needs no parts.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    eps: float = 0.0
    window: bool = False

    def parts(self, capacity: int, sequences: int) -> int:
        """Return how many threadgroups share the `capacity` rows of one key/value head of one sequence."""
        most = TARGET_GROUPS // (self.kv_heads * sequences)
        return 1 if self.window else max(1, min(most, capacity // LEAST_ROWS))

    @property
    def at_once(self) -> int:
        """Query heads of one SIMD group."""
        together = self.heads // self.kv_heads
        return max(n for n in range(1, AT_ONCE + 1) if together % n == 0)


def usable(heads: Heads) -> bool:
    """Return whether the kernel can work on heads of this form."""
    lanes, together = heads.head_dim // 8, heads.heads // heads.kv_heads
    floats = (together + 2) * heads.head_dim + SIMD_GROUPS * heads.at_once * (heads.head_dim + 2)
    fits = 4 * floats <= SHARED_BYTES and SIMD_GROUPS % (together // heads.at_once) == 0
    return fits and heads.head_dim % 8 == 0 and lanes in {1, 2, 4, 8, 16, 32}


STEP = Kernel(
    name="grouped_attention",
    writes=rows.written("keys", "values"),
    header=LIMITS + rows.ROWS,
    body="""
  threadgroup float heads[(TOGETHER + 2) * HEAD_DIM];  // queries, the new key, the new value
  threadgroup float sums[SIMD_GROUPS * AT_ONCE * HEAD_DIM];
  threadgroup float tops[SIMD_GROUPS * AT_ONCE];
  threadgroup float norms[SIMD_GROUPS * AT_ONCE];
  const uint lane = thread_index_in_simdgroup;
  const uint simd = simdgroup_index_in_threadgroup;
  const uint thread_index = thread_index_in_threadgroup;
  const uint kv = threadgroup_position_in_grid.x;
  const uint part = threadgroup_position_in_grid.y;
  const uint sequence = threadgroup_position_in_grid.z;
  const float position = float(places[sequence * 3]);
  const uint place = uint(places[sequence * 3 + 1]);  // row of the new token
  const uint begin = uint(places[sequence * 3 + 2]);  // first row that is seen

  for (uint h = simd; h < TOGETHER + 2; h += SIMD_GROUPS) {
    const uint row = h < TOGETHER ? kv * TOGETHER + h : HEADS + (h - TOGETHER) * KV_HEADS + kv;
    const uint column = row * HEAD_DIM;
    const uint source = sequence * (HEADS + 2 * KV_HEADS) * HEAD_DIM + column;
    float low[HALF_LANES], high[HALF_LANES];
    float squares = 0.0f;
    for (int i = 0; i < HALF_LANES; i++) {
      const uint pair = i * 32 + lane;
      low[i] = high[i] = 0.0f;
      if (pair < HEAD_DIM / 2) {
        low[i] = float(qkv[source + pair]);
        high[i] = float(qkv[source + pair + HEAD_DIM / 2]);
#if HAS_BIAS
        low[i] += float(bias[column + pair]);
        high[i] += float(bias[column + pair + HEAD_DIM / 2]);
#endif
        squares += low[i] * low[i] + high[i] * high[i];
      }
    }
#if HAS_NORM
    const float factor = metal::rsqrt(simd_sum(squares) / HEAD_DIM + EPS);
#endif
    for (int i = 0; i < HALF_LANES; i++) {
      const uint pair = i * 32 + lane;
      if (pair < HEAD_DIM / 2) {
        float a = low[i], b = high[i];
        if (h <= TOGETHER) {
#if HAS_NORM
          a *= factor * float(h < TOGETHER ? q_norm[pair] : k_norm[pair]);
          b *= factor * float(h < TOGETHER ? q_norm[pair + HEAD_DIM / 2] : k_norm[pair + HEAD_DIM / 2]);
#endif
          const float angle = position * (1.0f / wavelengths[pair]);
          const float cosine = metal::precise::cos(angle), sine = metal::precise::sin(angle);
          const float turned = a * cosine - b * sine;
          b = b * cosine + a * sine;
          a = turned;
        }
        if (h >= TOGETHER) {  // what the cache will hold
          a = float(T(a));
          b = float(T(b));
        }
        heads[h * HEAD_DIM + pair] = a;
        heads[h * HEAD_DIM + pair + HEAD_DIM / 2] = b;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const ulong base = (ulong(sequence) * KV_HEADS + kv) * keys_shape[2];
  const Rows key_rows = ROWS(keys, base, HEAD_DIM);
  const Rows value_rows = ROWS(values, base, HEAD_DIM);
  const bool newest = part == PARTS - 1;  // this part also takes the new token
  if (newest) {
    store_row(key_rows, place * HEAD_DIM, heads + TOGETHER * HEAD_DIM, HEAD_DIM, simd, lane);
    store_row(value_rows, place * HEAD_DIM, heads + (TOGETHER + 1) * HEAD_DIM, HEAD_DIM, simd, lane);
  }
#if MODE != PLAIN
  threadgroup_barrier(mem_flags::mem_threadgroup);  // the new token is seen as it was packed
#endif

  const uint head_set = simd % HEAD_SETS;
  const uint stripe = simd / HEAD_SETS;
  const uint sub = lane / LANES;            // which of the keys that the SIMD group reads together
  const uint column = (lane % LANES) * 8;   // which 8 values of it
  float query[AT_ONCE][8], sum[AT_ONCE][8], top[AT_ONCE], norm[AT_ONCE];
  for (int j = 0; j < AT_ONCE; j++) {
    top[j] = LOWEST;
    norm[j] = 0.0f;
    for (int i = 0; i < 8; i++) {
      query[j][i] = heads[(head_set * AT_ONCE + j) * HEAD_DIM + column + i] * SCALE;
      sum[j][i] = 0.0f;
    }
  }
  if (newest) {  // every lane has the score; one group of lanes starts with it
    for (int j = 0; j < AT_ONCE; j++) {
      float score = 0.0f;
      for (int i = 0; i < 8; i++) {
        score = metal::fma(query[j][i], heads[TOGETHER * HEAD_DIM + column + i], score);
      }
      for (uint mask = 1; mask < LANES; mask <<= 1) score += simd_shuffle_xor(score, mask);
      if (stripe == 0 && sub == 0) {
        top[j] = score;
        norm[j] = 1.0f;
        for (int i = 0; i < 8; i++) sum[j][i] = heads[(TOGETHER + 1) * HEAD_DIM + column + i];
      }
    }
  }
  const uint old = place - begin;
  const uint share = (old + PARTS - 1) / PARTS;
  const uint from = begin + metal::min(part * share, old);
  const uint to = begin + metal::min((part + 1) * share, old);
  for (uint first = from + stripe * TOKENS * AHEAD; first < to; first += STRIPES * TOKENS * AHEAD) {
    float key[AHEAD][8], value[AHEAD][8];
    bool seen[AHEAD];
    for (int n = 0; n < AHEAD; n++) {  // all loads first
      seen[n] = first + n * TOKENS + sub < to;
      const uint row = metal::min(first + n * TOKENS + sub, to - 1);
      load_row(key_rows, row * HEAD_DIM + column, key[n]);
      load_row(value_rows, row * HEAD_DIM + column, value[n]);
    }
    for (int j = 0; j < AT_ONCE; j++) {
      float score[AHEAD];
      float higher = top[j];
      for (int n = 0; n < AHEAD; n++) {
        score[n] = 0.0f;
        for (int i = 0; i < 8; i++) score[n] = metal::fma(query[j][i], key[n][i], score[n]);
        for (uint mask = 1; mask < LANES; mask <<= 1) score[n] += simd_shuffle_xor(score[n], mask);
        if (seen[n]) higher = metal::max(higher, score[n]);
      }
      const float shrink = metal::fast::exp(top[j] - higher);  // once for all keys that came together
      top[j] = higher;
      norm[j] *= shrink;
      for (int i = 0; i < 8; i++) sum[j][i] *= shrink;
      for (int n = 0; n < AHEAD; n++) {
        const float weight = seen[n] ? metal::fast::exp(score[n] - higher) : 0.0f;
        norm[j] += weight;
        for (int i = 0; i < 8; i++) sum[j][i] = metal::fma(weight, value[n][i], sum[j][i]);
      }
    }
  }

  for (int j = 0; j < AT_ONCE; j++) {
    float highest = top[j];
    for (uint mask = LANES; mask < 32; mask <<= 1) {
      highest = metal::max(highest, simd_shuffle_xor(highest, mask));
    }
    const float shrink = metal::exp(top[j] - highest);
    float all = norm[j] * shrink;
    for (uint mask = LANES; mask < 32; mask <<= 1) all += simd_shuffle_xor(all, mask);
    const uint slot = simd * AT_ONCE + j;
    for (int i = 0; i < 8; i++) {
      float total = sum[j][i] * shrink;
      for (uint mask = LANES; mask < 32; mask <<= 1) total += simd_shuffle_xor(total, mask);
      if (sub == 0) sums[slot * HEAD_DIM + column + i] = total;
    }
    if (lane == 0) {
      tops[slot] = highest;
      norms[slot] = all;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  for (uint index = thread_index; index < TOGETHER * HEAD_DIM; index += SIMD_GROUPS * 32) {
    const uint h = index / HEAD_DIM;
    const uint i = index % HEAD_DIM;
    float highest = LOWEST;
    for (uint s = 0; s < STRIPES; s++) {
      highest = metal::max(highest, tops[(s * HEAD_SETS + h / AT_ONCE) * AT_ONCE + h % AT_ONCE]);
    }
#if PARTS == 1 && HAS_SINKS
    highest = metal::max(highest, float(sinks[kv * TOGETHER + h]));
    float all = metal::exp(float(sinks[kv * TOGETHER + h]) - highest);
#else
    float all = 0.0f;
#endif
    float total = 0.0f;
    for (uint s = 0; s < STRIPES; s++) {
      const uint slot = (s * HEAD_SETS + h / AT_ONCE) * AT_ONCE + h % AT_ONCE;
      const float shrink = metal::exp(tops[slot] - highest);
      all += norms[slot] * shrink;
      total += sums[slot * HEAD_DIM + i] * shrink;
    }
    const uint head = sequence * HEADS + kv * TOGETHER + h;
#if PARTS == 1
    y[head * HEAD_DIM + i] = T(total / all);
#else
    partial[(head * PARTS + part) * HEAD_DIM + i] = total;
    if (i == 0) {
      bounds[(head * PARTS + part) * 2] = highest;
      bounds[(head * PARTS + part) * 2 + 1] = all;
    }
#endif
  }
""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the step needs beside the cache; what a family does not have is None.

    Attributes:
        wavelengths: Of the rotary pairs [head_dim / 2], float32, up to 2 pi.
        bias: Of queries, keys and values, side by side.
        q_norm: Weight of the queries' norm [head_dim].
        k_norm: Weight of the keys' norm [head_dim].
        sinks: One logit per query head.
    """

    wavelengths: mx.array
    bias: mx.array | None = None
    q_norm: mx.array | None = None
    k_norm: mx.array | None = None
    sinks: mx.array | None = None


def attend(
    qkv: mx.array,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
    places: mx.array,
    heads: Heads,
    weights: Weights,
) -> mx.array:
    """Attend with one new token of each sequence, and write its key and value into the cache.

    Args:
        qkv: [sequences, (heads + 2 * kv_heads) * head_dim], before bias, norm and rotation.
        keys: Parts of the buffer [sequences, kv_heads, capacity, head_dim] (macmoe.kernels.rows); written in
            place, so nobody else may hold them.
        values: The same for values.
        places: int32 [sequences, 3]: position of the token, its row in the buffers, the first row it sees.
        heads: Form of the layer.
        weights: Its weights.

    Returns:
        [sequences, heads * head_dim].
    """
    sequences, capacity = len(qkv), keys[0].shape[2]
    together = heads.heads // heads.kv_heads
    parts = heads.parts(capacity, sequences)
    lanes = heads.head_dim // 8
    sets = together // heads.at_once
    optional = {
        "bias": weights.bias,
        "q_norm": weights.q_norm,
        "k_norm": weights.k_norm,
        "sinks": weights.sinks if parts == 1 else None,
    }
    inputs = {
        "qkv": qkv,
        **rows.named("keys", keys),
        **rows.named("values", values),
        "places": places,
        "wavelengths": weights.wavelengths,
        **{name: array for name, array in optional.items() if array is not None},
    }
    constants = {
        **rows.constants(keys, heads.head_dim),
        "T": qkv.dtype,
        "HEADS": heads.heads,
        "KV_HEADS": heads.kv_heads,
        "HEAD_DIM": heads.head_dim,
        "TOGETHER": together,
        "PARTS": parts,
        "SIMD_GROUPS": SIMD_GROUPS,
        "AT_ONCE": heads.at_once,
        "AHEAD": AHEAD,
        "HEAD_SETS": sets,
        "STRIPES": SIMD_GROUPS // sets,
        "LANES": lanes,
        "TOKENS": 32 // lanes,
        "HALF_LANES": -(-heads.head_dim // 64),
        "SCALE": heads.scale,
        "EPS": heads.eps,
        "HAS_BIAS": weights.bias is not None,
        "HAS_NORM": weights.q_norm is not None,
        "HAS_SINKS": weights.sinks is not None,
    }
    groups, threads = (heads.kv_heads, parts, sequences), SIMD_GROUPS * 32
    if parts == 1:
        shape = (sequences, heads.heads * heads.head_dim)
        return launch(STEP, inputs, {"y": (shape, qkv.dtype)}, constants, groups=groups, threads=threads)[0]
    outputs = {
        "partial": ((sequences, heads.heads, parts, heads.head_dim), mx.float32),
        "bounds": ((sequences, heads.heads, parts, 2), mx.float32),
    }
    partial, bounds = launch(STEP, inputs, outputs, constants, groups=groups, threads=threads)
    return combine(partial, bounds, qkv.dtype, weights.sinks)
