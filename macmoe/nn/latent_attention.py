"""Multi-head latent attention (arXiv 2405.04434, section 2.1), in its two equivalent forms.

Keys and values of all heads are linear images of one small latent per token, and only the latent is cached:

    c = norm(x W_kva[:latent]);  k_rope = rope(x W_kva[latent:]);  k_h = [W_UK,h c | k_rope];  v_h = W_UV,h c

*Naive* expands c to the keys and values of every head: cheap per pair of tokens, but all cached tokens are
expanded.
*Absorbed* moves W_UK to the query and W_UV behind the sum, and attends to the latents themselves, as one
key/value head. Checked against DeepSeek-V3 inference/model.py and transformers' modeling_deepseek_v3.py.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float

from macmoe.config import RopeConfig
from macmoe.nn.attention import attend, merge_heads, split_heads
from macmoe.nn.pieces import after, cut
from macmoe.nn.positions import Mask, Positions
from macmoe.nn.quantized import HeadLinear
from macmoe.nn.rope import Rope, attention_factor, mscale
from macmoe.protocols import LayerCache

# The reference builds these two norms with its default, not with the config's rms_norm_eps.
LATENT_NORM_EPS = 1e-6

SCORES = 2**28  # bytes of the scores that are held at once
ROWS = 512  # queries of a head that are taken at once, if they may: each time its keys are read


def _visible(mask: Mask, length: int, keys: int) -> mx.array | None:
    """Return which keys each query sees, None if all."""
    if isinstance(mask, str):
        return mx.arange(keys) <= mx.arange(keys - length, keys)[:, None]
    return mask if isinstance(mask, mx.array) else None


@mx.checkpoint
def _newest(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """Return softmax(q.k) v of scaled queries of the newest tokens, which see all keys up to their own.

    So only the last keys are hidden from some. MLX's function, which has no kernel for these widths, compares
    and rewrites the scores of all keys.
    """
    rows = queries.shape[2]
    scores = queries @ keys.swapaxes(-1, -2)
    # Computed again, because all scores would be copied if they were written while some are read.
    last = queries @ keys[:, :, -rows:].swapaxes(-1, -2)
    lowest = mx.finfo(scores.dtype).min
    scores[..., -rows:] = mx.where(mx.tri(rows, dtype=mx.bool_), last, lowest)
    return mx.softmax(scores, axis=-1, precise=True) @ values


def _attend(queries: mx.array, keys: mx.array, values: mx.array, mask: Mask, at_once: int) -> mx.array:
    """Return softmax(q.k) v of scaled queries, so many at a time, with the keys up to their own."""
    length, count = queries.shape[2], keys.shape[2]
    found: list[mx.array] = []
    for rows in cut(length, at_once):
        end = count if mask is None else count - length + rows.stop
        some = (after(queries[:, :, rows], found[-1:]), keys[:, :, :end], values[:, :, :end])
        if isinstance(mask, str):
            found.append(_newest(*some))
        else:
            own = mask[..., rows, :end] if isinstance(mask, mx.array) else mask
            found.append(attend(*some, scale=1.0, mask=own))
    return mx.concatenate(found, axis=2)


class LatentAttention(nn.Module):
    """Latent attention of one layer.

    Args:
        dim: Width of the residual stream.
        heads: Number of heads.
        q_lora_rank: Width of the compressed query; None for a plain projection.
        latent: Width of the compressed key/value.
        nope_dim: Part of a query/key without rotation.
        rope_dim: Rotated part of a query/key, its key shared by all heads.
        value_dim: Width of a value.
        rope: Rotary configuration.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        q_lora_rank: int | None,
        latent: int,
        nope_dim: int,
        rope_dim: int,
        value_dim: int,
        rope: RopeConfig,
    ) -> None:
        super().__init__()
        self.heads, self.latent, self.nope_dim, self.rope_dim = heads, latent, nope_dim, rope_dim
        query_dim = heads * (nope_dim + rope_dim)
        if q_lora_rank is None:
            self.q_proj = nn.Linear(dim, query_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(dim, q_lora_rank, bias=False)
            self.q_a_layernorm = nn.RMSNorm(q_lora_rank, eps=LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(q_lora_rank, query_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(dim, latent + rope_dim, bias=False)
        self.kv_a_layernorm = nn.RMSNorm(latent, eps=LATENT_NORM_EPS)
        self.k_up_proj = HeadLinear(heads, latent, nope_dim)
        self.v_up_proj = HeadLinear(heads, latent, value_dim)
        self.o_proj = nn.Linear(heads * value_dim, dim, bias=False)
        self.rope = Rope(rope_dim, rope, interleaved=True)
        self.rope_scale = attention_factor(rope.yarn) ** 2
        stretch = mscale(rope.yarn.factor, rope.yarn.mscale_all_dim or 0.0) if rope.yarn else 1.0
        self.scale = (nope_dim + rope_dim) ** -0.5 * stretch**2
        # Absorbed needs more multiplications per pair of tokens; naive has to expand every cached token
        # first.
        extra = 2 * latent - nope_dim - value_dim
        self.absorb_below = latent * (nope_dim + value_dim) / extra if extra > 0 else math.inf

    def _queries(self, x: mx.array, positions: Positions) -> tuple[mx.array, mx.array]:
        """Return the plain and the rotated part [batch, heads, length, nope_dim | rope_dim]."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) if "q_a_proj" in self else self.q_proj(x)
        q = split_heads(q, self.nope_dim + self.rope_dim).transpose(0, 2, 1, 3)
        plain, rotary = mx.split(q, [self.nope_dim], axis=-1)
        rotary = self.rope(rotary, positions.start)
        return plain, rotary if self.rope_scale == 1 else rotary * self.rope_scale

    def _latents(self, x: mx.array, positions: Positions) -> mx.array:
        """Return what is cached: [batch, 1, length, latent + rope_dim]."""
        c, k_rope = mx.split(self.kv_a_proj_with_mqa(x)[:, None], [self.latent], axis=-1)
        return mx.concatenate([self.kv_a_layernorm(c), self.rope(k_rope, positions.start)], axis=-1)

    def naive(self, q_nope: mx.array, q_rope: mx.array, latents: mx.array, mask: Mask) -> mx.array:
        """Attend with the keys and values of every head written out: [batch, heads, length, value_dim].

        They are written out once, for some heads at a time, whose scores do not take more than `SCORES`.
        """
        batch, _, keys, _ = latents.shape
        of_query = latents.dtype.size * batch * keys  # bytes of the scores of a query in one head
        rows = max(1, min(ROWS, SCORES // of_query))
        found: list[mx.array] = []
        for heads in cut(self.heads, max(1, SCORES // (rows * of_query))):
            written_out = self._written_out(after(latents, found[-1:]), heads)
            queries = mx.concatenate([q_nope[:, heads], q_rope[:, heads]], axis=-1) * self.scale
            found.append(_attend(queries, *written_out, mask, rows))
        return mx.concatenate(found, axis=1)

    def _written_out(self, latents: mx.array, heads: slice) -> tuple[mx.array, mx.array]:
        """Return keys and values of some heads [batch, heads, keys, nope_dim + rope_dim | value_dim]."""
        c, k_rope = mx.split(latents, [self.latent], axis=-1)
        k_nope = self.k_up_proj(c, heads)
        k_rope = mx.broadcast_to(k_rope, (*k_nope.shape[:3], self.rope_dim))
        return mx.concatenate([k_nope, k_rope], axis=-1), self.v_up_proj(c, heads)

    def absorbed(self, q_nope: mx.array, q_rope: mx.array, latents: mx.array, mask: Mask) -> mx.array:
        """Attend to the latents themselves: [batch, heads, length, value_dim].

        All heads see the same keys: those of all tokens are the rows of one matrix, and no key is repeated.
        """
        queries = mx.concatenate([self.k_up_proj.transposed(q_nope), q_rope], axis=-1)
        batch, heads, length, width = queries.shape
        rows = queries.swapaxes(1, 2).reshape(batch, 1, length * heads, width)
        keys = latents.shape[2]
        visible = _visible(mask, length, keys)
        if visible is not None and length > 1:
            visible = mx.repeat(visible, heads, axis=-2)
        mixed = attend(rows, latents, latents[..., : self.latent], scale=self.scale, mask=visible)
        return self.v_up_proj(mixed.reshape(batch, length, heads, -1).swapaxes(1, 2))

    def _cheaper(self, positions: Positions, latents: mx.array) -> Callable[..., mx.array]:
        """Return the form to compute with."""
        batch, _, keys, _ = latents.shape
        scores = batch * self.heads * positions.length * keys * latents.dtype.size
        short = positions.length == 1 or (positions.length < self.absorb_below and scores <= SCORES)
        return self.absorbed if positions.offset and short else self.naive

    def __call__(
        self,
        x: Float[mx.array, "batch length dim"],
        mask: Mask,
        positions: Positions,
        cache: LayerCache | None,
    ) -> Float[mx.array, "batch length dim"]:
        """Attend to this call's tokens and the cached ones, in the cheaper form."""
        q_nope, q_rope = self._queries(x, positions)
        latents = self._latents(x, positions)
        if cache is not None:
            (latents,) = cache.update(latents)
        form = self._cheaper(positions, latents)
        return self.o_proj(merge_heads(form(q_nope, q_rope, latents, mask)))
