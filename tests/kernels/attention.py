"""The cases of attention: one new token of each sequence, and what it leaves in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from macmoe.kernels import grouped_attention, latent_attention
from macmoe.kernels.packed import Packing
from tests.kernels.cases import ULP, Pairs, draw, stack


def rotated(x: mx.array, position: int, wavelengths: mx.array, *, interleaved: bool) -> mx.array:
    """Turn [..., width] by a position."""
    return mx.fast.rope(
        x[None, :, None] if x.ndim == 2 else x,
        x.shape[-1],
        traditional=interleaved,
        base=None,
        scale=1.0,
        offset=position,
        freqs=wavelengths,
    )[0, :, 0]


def cached(rows: mx.array, group: int) -> list[mx.array]:
    """Return the parts of a buffer: the rows themselves, or packed in groups."""
    parts = [mx.array(rows)] if not group else list(mx.quantize(rows, group, 8))
    mx.eval(parts)
    return parts


def unpacked(parts: list[mx.array], group: int) -> mx.array:
    """Return what a buffer stands for, in float32."""
    if not group:
        return parts[0].astype(mx.float32)
    wide = [part.astype(mx.float32) for part in parts[1:]]
    return mx.dequantize(parts[0], *wide, group_size=group, bits=8, dtype=mx.float32)


def excess(got: mx.array, wanted: mx.array, group: int) -> Pairs:
    """Return by how much packed rows are off beyond a step and the rounding of its scale: wanted is 0."""
    groups = wanted.astype(mx.float32).reshape(-1, group)
    step = (groups.max(-1, keepdims=True) - groups.min(-1, keepdims=True)) / 255
    rounding = ULP[wanted.dtype] * (mx.abs(groups).max(-1, keepdims=True) + 255 * step)
    beyond = mx.abs(got.reshape(-1, group) - groups) - 1.01 * step - rounding
    return [(mx.maximum(beyond, 0), mx.zeros(beyond.shape))]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Sizes of one grouped-query layer; numbers of a packed cache share a scale in a group, 0: not packed.

    Each sequence has its `padding` before its tokens; the first one holds `cached` rows, the next one fewer.
    """

    heads: int
    kv_heads: int
    head_dim: int
    cached: int
    capacity: int
    first: int = 0
    padding: tuple[int, ...] = (0,)
    window: bool = False
    bias: bool = False
    norm: bool = False
    sinks: bool = False
    group: int = 0

    @property
    def places(self) -> list[list[int]]:
        """Position, row and first row of each sequence's token; the buffers begin at position 7."""
        return places_of(self.cached, self.padding, self.first, start=7)


def places_of(cached: int, padding: tuple[int, ...], first: int = 0, *, start: int) -> list[list[int]]:
    """Return position, row and first row of a token after `cached` rows, for each sequence one row less."""
    rows = [cached - number for number in range(len(padding))]
    return [[start + row - pad, row, max(first, pad)] for row, pad in zip(rows, padding, strict=True)]


def case_grouped_attention(dtype: mx.Dtype, form: AttentionShape) -> Pairs:
    """One token of each sequence, also what it leaves in the cache."""
    heads = grouped_attention.Heads(
        heads=form.heads,
        kv_heads=form.kv_heads,
        head_dim=form.head_dim,
        scale=form.head_dim**-0.5,
        eps=1e-6,
        window=form.window,
    )
    width, sequences = form.head_dim, len(form.padding)
    qkv = draw(sequences, (form.heads + 2 * form.kv_heads) * width, dtype=dtype)
    shape = (sequences, form.kv_heads, form.capacity, width)
    keys, values = (cached(draw(*shape, dtype=dtype), form.group) for _ in range(2))
    weights = grouped_attention.Weights(
        wavelengths=1e4 ** (mx.arange(width // 2) * 2 / width),
        bias=draw(qkv.shape[1], dtype=dtype) if form.bias else None,
        q_norm=draw(width, dtype=dtype) if form.norm else None,
        k_norm=draw(width, dtype=dtype) if form.norm else None,
        sinks=draw(form.heads, dtype=dtype) if form.sinks else None,
    )
    old = [unpacked(buffer, form.group) + 0 for buffer in (keys, values)]
    places = mx.array(form.places, dtype=mx.int32)
    mx.eval(qkv, keys, values, old, weights.wavelengths)
    got = grouped_attention.attend(qkv, keys, values, places, heads, weights)
    mx.eval(got)
    held = [unpacked(buffer, form.group) for buffer in (keys, values)]
    pairs: Pairs = []
    for number, (position, row, first) in enumerate(form.places):
        q, k, v = _projected(qkv[number], position, weights, form)
        new = [array.astype(dtype).astype(mx.float32)[:, None] for array in (k, v)]
        if form.group:  # the new token is seen as it was packed
            new = [buffer[number, :, row : row + 1] for buffer in held]
        seen = [
            mx.concatenate([buffer[number, :, first:row], one], axis=1)[None]
            for buffer, one in zip(old, new, strict=True)
        ]
        wanted = mx.fast.scaled_dot_product_attention(
            q[None, :, None],
            *seen,
            scale=heads.scale,
            sinks=None if weights.sinks is None else weights.sinks.astype(mx.float32),
        )
        pairs.append((got[number], wanted.flatten()))
        for buffer, before, one in zip(held, old, (k, v), strict=True):
            pairs += _left(buffer[number], before[number], row, one.astype(dtype), form.group)
    return pairs


def _projected(
    qkv: mx.array, position: int, weights: grouped_attention.Weights, form: AttentionShape
) -> list[mx.array]:
    """Return queries, keys and values of one token [heads, head_dim], in float32."""
    wide = qkv.astype(mx.float32)
    wide = wide if weights.bias is None else wide + weights.bias.astype(mx.float32)
    q, k, v = mx.split(wide.reshape(-1, form.head_dim), [form.heads, form.heads + form.kv_heads])
    if weights.q_norm is not None and weights.k_norm is not None:
        q = mx.fast.rms_norm(q, weights.q_norm.astype(mx.float32), 1e-6)
        k = mx.fast.rms_norm(k, weights.k_norm.astype(mx.float32), 1e-6)
    turned = [rotated(x, position, weights.wavelengths, interleaved=False) for x in (q, k)]
    return [*turned, v]


def _left(held: mx.array, before: mx.array, row: int, new: mx.array, group: int) -> Pairs:
    """Compare what a buffer [heads, capacity, width] holds: the new row, and all others as before."""
    others = mx.arange(held.shape[1]) != row
    pairs = [(mx.where(others[:, None], held, 0), mx.where(others[:, None], before, 0))]
    return pairs + (excess(held[:, row], new, group) if group else [(held[:, row].astype(new.dtype), new)])


def case_latent_attention(
    dtype: mx.Dtype,
    form: latent_attention.Form,
    packing: Packing,
    *,
    past: int,
    capacity: int,
    padding: tuple[int, ...] = (0,),
    group: int = 0,
) -> Pairs:
    """All launches of latent attention, one after the other; `padding` and `group` as in `AttentionShape`."""
    sequences = len(padding)
    compressed = draw(sequences, form.q_rank + form.width, dtype=dtype)
    cache = cached(draw(sequences, 1, capacity, form.width, dtype=dtype), group)
    q_norm, kv_norm = draw(form.q_rank, dtype=dtype), draw(form.latent, dtype=dtype)
    query = draw(sequences, form.heads * (form.nope_dim + form.rope_dim), dtype=dtype)
    up, up_wide = stack(packing, (form.heads, form.nope_dim, form.latent), dtype)
    wavelengths = 1e4 ** (mx.arange(form.rope_dim // 2) * 2 / form.rope_dim)
    numbers = places_of(past, padding, start=3)
    places = mx.array(numbers, dtype=mx.int32)
    old = unpacked(cache, group) + 0
    mx.eval(compressed, cache, old, query, wavelengths)
    normed = latent_attention.prepare(compressed, (q_norm, kv_norm), cache, places, wavelengths, form)
    mx.eval(normed)
    q, c, k = mx.split(compressed.astype(mx.float32), [form.q_rank, form.q_rank + form.latent], axis=-1)
    pairs = [(normed, mx.fast.rms_norm(q, q_norm.astype(mx.float32), form.eps))]
    wanted_c = mx.fast.rms_norm(c, kv_norm.astype(mx.float32), form.eps)
    held = unpacked(cache, group)

    absorbed = latent_attention.absorb(query, up, places, wavelengths, form)
    got = latent_attention.attend(absorbed, cache, places, form)
    heads = query.astype(mx.float32).reshape(sequences, form.heads, -1)
    plain, rotary = mx.split(heads, [form.nope_dim], axis=-1)
    latents = (plain[:, :, None] @ up_wide)[:, :, 0]
    for number, (position, row, first) in enumerate(numbers):
        wanted_k = rotated(k[number : number + 1], position, wavelengths, interleaved=True)
        new = mx.concatenate([wanted_c[number : number + 1], wanted_k], axis=-1)
        pairs += _left(held[number], old[number], row, new.astype(dtype), group)
        turned = rotated(rotary[number], position, wavelengths, interleaved=True) * form.rope_scale
        wanted = mx.concatenate([latents[number], turned], axis=-1) * form.scale
        seen = held[number, 0, first : row + 1]
        weights = mx.softmax(absorbed[number].astype(mx.float32) @ seen.T, axis=-1)
        pairs += [(absorbed[number], wanted), (got[number], weights @ seen[:, : form.latent])]
    return pairs


def case_latent_weights(
    dtype: mx.Dtype, form: latent_attention.Form, *, first: int, past: int, capacity: int
) -> Pairs:
    """Attention of one token to a long buffer, of which rows `first` to `past` are seen."""
    cache = draw(1, 1, capacity, form.width, dtype=dtype)
    absorbed = draw(1, form.heads, form.width, dtype=dtype) * form.scale
    places = mx.array([[past + 3, past, first]], dtype=mx.int32)
    mx.eval(cache, absorbed)
    seen = cache[0, 0, first : past + 1].astype(mx.float32)
    weights = mx.softmax(absorbed[0].astype(mx.float32) @ seen.T, axis=-1)
    got = latent_attention.attend(absorbed, [cache], places, form)
    return [(got[0], weights @ seen[:, : form.latent])]
