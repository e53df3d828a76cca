"""Latent attention of one new token per sequence, absorbed (arXiv 2405.04434, section 2.1).

`prepare` norms the compressed query and key/value, turns the rotary key and appends both to the cache;
`absorb` moves the key's up-projection to the query, head by head, and turns the query's rotary part; `attend`
reads the cache, of which the values are a part; `unpack` writes a packed one out for it. Rotary pairs stand
side by side.

All heads of a sequence read the same keys: they are the rows of one matrix, and attention is a matter of
matrix units, not of bandwidth. So its two products are those of MLX, over the whole buffer; the softmax
between them knows which rows are seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from macmoe.kernels import rows
from macmoe.kernels.experts import Stack
from macmoe.kernels.packed import CHUNK, KINDS, LOAD, UNPACK, weight_dtype
from macmoe.kernels.parts import LIMITS
from macmoe.kernels.source import SHARED_BYTES, Kernel, launch

THREADS = 512
SIMD_GROUPS = 8
AHEAD = 2  # times 8 scores of a row that a thread reads at once

ROTATE = """
inline void rotate(thread float* even, thread float* odd, float angle) {
  const float cosine = metal::precise::cos(angle), sine = metal::precise::sin(angle);
  const float turned = *even * cosine - *odd * sine;
  *odd = *odd * cosine + *even * sine;
  *even = turned;
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The arrangement of one layer.

    Attributes:
        heads: Number of heads.
        q_rank: Width of the compressed query.
        latent: Width of the compressed key/value.
        nope_dim: Part of a query/key without rotation.
        rope_dim: Rotated part.
        scale: Multiplies the scores.
        rope_scale: Multiplies rotated queries.
        eps: Of both norms.
    """

    heads: int
    q_rank: int
    latent: int
    nope_dim: int
    rope_dim: int
    scale: float
    rope_scale: float
    eps: float

    @property
    def width(self) -> int:
        """What the cache holds of a token."""
        return self.latent + self.rope_dim


def usable(form: Form) -> bool:
    """Return whether the kernels can work on layers of this form."""
    fits = 4 * SIMD_GROUPS * form.latent <= SHARED_BYTES
    return fits and form.latent % CHUNK == 0 and form.latent // CHUNK in {1, 2, 4, 8, 16, 32}


PREPARE = Kernel(
    name="latent_prepare",
    writes=rows.written("cache"),
    header=rows.ROWS + ROTATE,
    body="""
  threadgroup float partial[2 * THREADS / 32];
  threadgroup float row[LATENT + ROPE_DIM];
  const uint sequence = threadgroup_position_in_grid.x;
  const uint thread_index = thread_index_in_threadgroup;
  const device T* source = compressed + sequence * (Q_RANK + LATENT + ROPE_DIM);
  float q_squares = 0.0f, c_squares = 0.0f;
  for (uint i = thread_index; i < Q_RANK; i += THREADS) q_squares += float(source[i]) * float(source[i]);
  for (uint i = thread_index; i < LATENT; i += THREADS) {
    c_squares += float(source[Q_RANK + i]) * float(source[Q_RANK + i]);
  }
  q_squares = simd_sum(q_squares);
  c_squares = simd_sum(c_squares);
  if (thread_index_in_simdgroup == 0) {
    partial[2 * simdgroup_index_in_threadgroup] = q_squares;
    partial[2 * simdgroup_index_in_threadgroup + 1] = c_squares;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  q_squares = c_squares = 0.0f;
  for (int i = 0; i < THREADS / 32; i++) {
    q_squares += partial[2 * i];
    c_squares += partial[2 * i + 1];
  }
  const float q_factor = metal::rsqrt(q_squares / Q_RANK + EPS);
  const float c_factor = metal::rsqrt(c_squares / LATENT + EPS);
  for (uint i = thread_index; i < Q_RANK; i += THREADS) {
    query[sequence * Q_RANK + i] = T(float(source[i]) * q_factor * float(q_norm[i]));
  }
  for (uint i = thread_index; i < LATENT; i += THREADS) {
    row[i] = float(T(float(source[Q_RANK + i]) * c_factor * float(kv_norm[i])));
  }
  for (uint pair = thread_index; pair < ROPE_DIM / 2; pair += THREADS) {
    float even = float(source[Q_RANK + LATENT + 2 * pair]);
    float odd = float(source[Q_RANK + LATENT + 2 * pair + 1]);
    rotate(&even, &odd, float(places[sequence * 3]) * (1.0f / wavelengths[pair]));
    row[LATENT + 2 * pair] = float(T(even));
    row[LATENT + 2 * pair + 1] = float(T(odd));
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const ulong place = ulong(sequence) * cache_shape[2] + places[sequence * 3 + 1];
  const Rows cached = ROWS(cache, place, LATENT + ROPE_DIM);
  store_row(cached, 0, row, LATENT + ROPE_DIM, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
""",
)

UNPACK_ROWS = Kernel(
    name="latent_unpack",
    header=rows.ROWS,
    body="""
  const uint place = (threadgroup_position_in_grid.x * THREADS + thread_index_in_threadgroup) * 8;
  const uint numbers = uint(cache_shape[0]) * uint(cache_shape[2]) * WIDTH;
  const Rows packed = ROWS(cache, ulong(0), WIDTH);
  if (place < numbers) {
    float values[8];
    load_row(packed, place, values);
    store_floats(unpacked + place, values);
  }
""",
)

ABSORB = Kernel(
    name="latent_absorb",
    header=LOAD + UNPACK + ROTATE,
    body="""
  threadgroup float sums[SIMD_GROUPS * LATENT];
  const uint lane = thread_index_in_simdgroup;
  const uint simd = simdgroup_index_in_threadgroup;
  const uint thread_index = thread_index_in_threadgroup;
  const uint head = threadgroup_position_in_grid.x;
  const uint sequence = threadgroup_position_in_grid.y;
  const device T* source = query + (sequence * HEADS + head) * (NOPE_DIM + ROPE_DIM);
  device T* target = absorbed + (sequence * HEADS + head) * (LATENT + ROPE_DIM);
  const uint chunk = lane % CHUNKS;        // which 32 columns
  const uint sub = simd * (32 / CHUNKS) + lane / CHUNKS;  // which rows
  const device W* matrix = w + ulong(head) * NOPE_DIM * ROW_WORDS(LATENT);
  float sum[32];
  for (int i = 0; i < 32; i++) sum[i] = 0.0f;
  for (uint row = sub; row < NOPE_DIM; row += SIMD_GROUPS * (32 / CHUNKS)) {
    float w_values[32];
    unpack(matrix + row * ROW_WORDS(LATENT) + chunk * ROW_WORDS(32), w_values);
    const float x = float(source[row]);
    const uint group = (head * NOPE_DIM + row) * (LATENT / GROUP) + chunk * 32 / GROUP;
    const float scale = SCALED(scales, offsets, group, x, 0.0f);
    const float offset = SCALED(scales, offsets, group, 0.0f, x);
    for (int i = 0; i < 32; i++) sum[i] += metal::fma(scale, w_values[i], offset);
  }
  for (int i = 0; i < 32; i++) {
    for (uint mask = CHUNKS; mask < 32; mask <<= 1) sum[i] += simd_shuffle_xor(sum[i], mask);
  }
  if (lane < CHUNKS) {
    for (int i = 0; i < 32; i++) sums[simd * LATENT + chunk * 32 + i] = sum[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < LATENT; i += SIMD_GROUPS * 32) {
    float total = 0.0f;
    for (int s = 0; s < SIMD_GROUPS; s++) total += sums[s * LATENT + i];
    target[i] = T(total * SCALE);
  }
  for (uint pair = thread_index; pair < ROPE_DIM / 2; pair += SIMD_GROUPS * 32) {
    float even = float(source[NOPE_DIM + 2 * pair]);
    float odd = float(source[NOPE_DIM + 2 * pair + 1]);
    rotate(&even, &odd, float(places[sequence * 3]) * (1.0f / wavelengths[pair]));
    target[LATENT + 2 * pair] = T(even * (ROPE_SCALE * SCALE));
    target[LATENT + 2 * pair + 1] = T(odd * (ROPE_SCALE * SCALE));
  }
""",
)

WEIGH = Kernel(
    name="latent_weights",
    header=LOAD
    + LIMITS
    + """
// 8 neighboring scores of a row, from `place` on; those that are not seen are as low as can be.
inline void load_scores(const device T* row, uint place, uint begin, uint end, thread float* values) {
  if (place < end) {
#if WHOLE_CHUNKS
    load_floats(row + place, values, 8);
#else
    for (uint i = 0; i < 8 && place + i < end; i++) values[i] = float(row[place + i]);
#endif
  }
  if (place < begin || place + 8 > end) {
    for (uint i = 0; i < 8; i++) values[i] = place + i >= begin && place + i < end ? values[i] : LOWEST;
  }
}

inline void store_weights(device T* row, uint place, uint capacity, thread float* values) {
#if WHOLE_CHUNKS
  store_floats(row + place, values);
#else
  for (uint i = 0; i < 8 && place + i < capacity; i++) row[place + i] = T(values[i]);
#endif
}
""",
    body="""
  threadgroup float highs[THREADS / 32];
  threadgroup float sums[THREADS / 32];
  const uint row = threadgroup_position_in_grid.x;
  const uint sequence = row / HEADS;
  const uint capacity = uint(scores_shape[2]);
  const device T* source = scores + ulong(row) * capacity;
  device T* target = weights + ulong(row) * capacity;
  const uint begin = uint(places[sequence * 3 + 2]);
  const uint end = uint(places[sequence * 3 + 1]) + 1;  // a token sees itself
  const uint first = 8 * thread_index_in_threadgroup;
  // More is read at once than is needed: a row has one threadgroup, which would wait for each score.
  float values[8 * AHEAD], highest = LOWEST, norm = 0.0f;
  for (uint place = first; place < end; place += 8 * AHEAD * THREADS) {
    for (int j = 0; j < AHEAD; j++) load_scores(source, place + 8 * j * THREADS, begin, end, values + 8 * j);
    float higher = highest;
    for (int i = 0; i < 8 * AHEAD; i++) higher = metal::max(higher, values[i]);
    norm *= metal::fast::exp(highest - higher);
    for (int i = 0; i < 8 * AHEAD; i++) norm += metal::fast::exp(values[i] - higher);
    highest = higher;
  }
  const float high = simd_max(highest);
  norm = simd_sum(norm * metal::fast::exp(highest - high));
  if (thread_index_in_simdgroup == 0) {
    highs[simdgroup_index_in_threadgroup] = high;
    sums[simdgroup_index_in_threadgroup] = norm;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  highest = LOWEST;
  for (int i = 0; i < THREADS / 32; i++) highest = metal::max(highest, highs[i]);
  norm = 0.0f;
  for (int i = 0; i < THREADS / 32; i++) norm += sums[i] * metal::fast::exp(highs[i] - highest);
  for (uint place = first; place < capacity; place += 8 * AHEAD * THREADS) {
    for (int j = 0; j < AHEAD; j++) load_scores(source, place + 8 * j * THREADS, begin, end, values + 8 * j);
    for (int i = 0; i < 8 * AHEAD; i++) values[i] = metal::fast::exp(values[i] - highest) / norm;
    for (int j = 0; j < AHEAD; j++) {
      const uint own = place + 8 * j * THREADS;
      if (own < capacity) store_weights(target, own, capacity, values + 8 * j);  // 0 beyond the cache
    }
  }
""",
)


def prepare(
    compressed: mx.array,
    norms: tuple[mx.array, mx.array],
    cache: Sequence[mx.array],
    places: mx.array,
    wavelengths: mx.array,
    form: Form,
) -> mx.array:
    """Append the new tokens to the cache and return their normed compressed queries [sequences, q_rank].

    Args:
        compressed: [sequences, q_rank + latent + rope_dim]: query and key/value, compressed, and rotary key.
        norms: Weights of the two norms, [q_rank] and [latent].
        cache: Parts of the buffer [sequences, 1, capacity, latent + rope_dim] (macmoe.kernels.rows), written
            in place, so nobody else may hold them.
        places: int32 [sequences, 3]: position of the token, its row in the buffer, the first row it sees.
        wavelengths: Of the rotary pairs [rope_dim / 2], float32, up to 2 pi.
        form: The arrangement.
    """
    sequences = len(compressed)
    inputs = {
        "compressed": compressed,
        "q_norm": norms[0],
        "kv_norm": norms[1],
        **rows.named("cache", cache),
        "places": places,
        "wavelengths": wavelengths,
    }
    constants = {
        **rows.constants(cache, form.width),
        "T": compressed.dtype,
        "Q_RANK": form.q_rank,
        "LATENT": form.latent,
        "ROPE_DIM": form.rope_dim,
        "EPS": form.eps,
        "THREADS": THREADS,
        "SIMD_GROUPS": THREADS // 32,
    }
    outputs = {"query": ((sequences, form.q_rank), compressed.dtype)}
    return launch(PREPARE, inputs, outputs, constants, groups=(sequences, 1, 1), threads=THREADS)[0]


def absorb(query: mx.array, up: Stack, places: mx.array, wavelengths: mx.array, form: Form) -> mx.array:
    """Return queries that can be compared with the cache, scaled: [sequences, heads, latent + rope_dim].

    Args:
        query: [sequences, heads * (nope_dim + rope_dim)].
        up: The key's up-projection as stored, [heads, nope_dim, latent].
        places: See `prepare`.
        wavelengths: See `prepare`.
        form: The arrangement.
    """
    sequences = len(query)
    constants = {
        **up.packing.constants,
        "T": query.dtype,
        "T_KIND": KINDS[query.dtype],
        "W": weight_dtype(up.packing, query.dtype),
        "HEADS": form.heads,
        "LATENT": form.latent,
        "NOPE_DIM": form.nope_dim,
        "ROPE_DIM": form.rope_dim,
        "ROPE_SCALE": form.rope_scale,
        "SCALE": form.scale,
        "CHUNKS": form.latent // CHUNK,
        "SIMD_GROUPS": SIMD_GROUPS,
    }
    inputs = {"query": query, "places": places, "wavelengths": wavelengths, **up.arrays()}
    outputs = {"absorbed": ((sequences, form.heads, form.width), query.dtype)}
    groups = (form.heads, sequences, 1)
    return launch(ABSORB, inputs, outputs, constants, groups=groups, threads=32 * SIMD_GROUPS)[0]


def unpack(cache: Sequence[mx.array], after: mx.array, form: Form) -> mx.array:
    """Write out a packed cache: [sequences, capacity, latent + rope_dim], in the model's type.

    Args:
        cache: Three parts, see `prepare`.
        after: Something that comes from what `prepare` returned: an input that is not read, so that the new
            row is there (MLX knows of it no other way, and its CUDA graphs only know inputs and outputs).
        form: The arrangement.
    """
    sequences, _, capacity, _ = cache[0].shape
    numbers, dtype = sequences * capacity * form.width, cache[1].dtype
    constants = {
        **rows.constants(cache, form.width),
        "T": dtype,
        "WIDTH": form.width,
        "THREADS": THREADS,
        "SIMD_GROUPS": THREADS // 32,
    }
    (unpacked,) = launch(
        UNPACK_ROWS,
        {**rows.named("cache", cache), "after": after},
        {"unpacked": ((sequences, capacity, form.width), dtype)},
        constants,
        groups=(-(-numbers // (8 * THREADS)), 1, 1),
        threads=THREADS,
    )
    return unpacked


def attend(absorbed: mx.array, cache: Sequence[mx.array], places: mx.array, form: Form) -> mx.array:
    """Attend to the latents: [sequences, heads, latent], each token to its cache up to its own row.

    Args:
        absorbed: From `absorb`.
        cache: See `prepare`, the new token included.
        places: See `prepare`.
        form: The arrangement.
    """
    # Only operations that read the buffer as it lies may take it: a copy, such as MLX's products make of rows
    # with gaps, would depend on nothing that `prepare` returns, and could come before it. So the values are
    # cut out of the result.
    keys = cache[0].squeeze(1) if len(cache) == 1 else unpack(cache, absorbed, form)
    scores = absorbed @ keys.swapaxes(-1, -2)  # [sequences, heads, capacity]
    constants = {
        "T": keys.dtype,
        "T_KIND": KINDS[keys.dtype],
        "HEADS": form.heads,
        "WHOLE_CHUNKS": keys.shape[1] % 8 == 0,
        "THREADS": THREADS,
        "AHEAD": AHEAD,
    }
    (weights,) = launch(
        WEIGH,
        {"scores": scores, "places": places},
        {"weights": (scores.shape, scores.dtype)},
        constants,
        groups=(len(scores) * form.heads, 1, 1),
        threads=THREADS,
    )
    return (weights @ keys)[..., : form.latent]
