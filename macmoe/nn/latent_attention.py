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
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float

from macmoe.config import RopeConfig
from macmoe.nn.attention import attend, merge_heads, split_heads
from macmoe.nn.positions import Mask, Positions
from macmoe.nn.quantized import HeadLinear
from macmoe.nn.rope import Rope, attention_factor, mscale
from macmoe.protocols import LayerCache

# The reference builds these two norms with its default, not with the config's rms_norm_eps.
LATENT_NORM_EPS = 1e-6


BLOCK = 512  # keys whose scores are held at once
SCORE_BYTES = 2 + 4 + 2  # of a score and its weight, while a softmax is computed
SCORES = 2**28  # bytes of all scores of a sequence from which on keys come in blocks


def block_bytes(heads: int) -> int:
    """Return the bytes of one token's scores and weights for a block of keys."""
    return heads * BLOCK * SCORE_BYTES


@partial(mx.compile, shapeless=True)
def _weigh(scores: mx.array, highest: mx.array, higher: mx.array) -> tuple[mx.array, mx.array]:
    """Return the weights of a block, and what earlier sums shrink by."""
    return mx.exp(scores.astype(mx.float32) - higher), mx.exp(highest - higher)


@dataclass(frozen=True, slots=True)
class Running:
    """A softmax over keys that come in blocks, in float32.

    Attributes:
        highest: Highest score so far [batch, heads, length, 1].
        norm: Sum of the weights [batch, heads, length, 1].
        total: Sum of weighted values [batch, heads, length, value_dim].
    """

    highest: mx.array
    norm: mx.array
    total: mx.array

    @classmethod
    def start(cls, queries: mx.array, value_dim: int) -> "Running":
        """Start with no keys; low, not -inf, so that a block without visible keys gives no NaN."""
        rows = queries.shape[:3]
        lowest = mx.full((*rows, 1), mx.finfo(mx.float32).min)
        return cls(lowest, mx.zeros((*rows, 1)), mx.zeros((*rows, value_dim)))

    def with_block(self, scores: mx.array, visible: mx.array | None, values: mx.array) -> "Running":
        """Add a block: scores [batch, heads, length, block], values [batch, heads, block, value_dim]."""
        if visible is not None:
            scores = mx.where(visible, scores, mx.finfo(scores.dtype).min)
        higher = mx.maximum(self.highest, scores.max(axis=-1, keepdims=True).astype(mx.float32))
        weights, shrink = _weigh(scores, self.highest, higher)
        norm = self.norm * shrink + weights.sum(axis=-1, keepdims=True)
        return Running(higher, norm, self.total * shrink + weights.astype(values.dtype) @ values)

    def result(self, dtype: mx.Dtype) -> mx.array:
        """Return the weighted mean of the values."""
        return (self.total / self.norm).astype(dtype)


def _visible(mask: Mask, begin: int, end: int, length: int, keys: int) -> mx.array | None:
    """Return which keys of a block each query sees, None if all."""
    if isinstance(mask, mx.array):
        return mask[..., begin:end]
    first = keys - length  # place of the first query
    if mask is None or end <= first + 1:
        return None
    return mx.arange(begin, end) <= mx.arange(first, keys)[:, None]


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
        """Attend with the keys and values of every head written out: [batch, heads, length, value_dim]."""
        c, k_rope = mx.split(latents, [self.latent], axis=-1)
        k_nope = self.k_up_proj(c)  # [batch, heads, keys, nope_dim]
        k_rope = mx.broadcast_to(k_rope, (*k_nope.shape[:3], self.rope_dim))
        queries = mx.concatenate([q_nope, q_rope], axis=-1)
        keys = mx.concatenate([k_nope, k_rope], axis=-1)
        return attend(queries, keys, self.v_up_proj(c), scale=self.scale, mask=mask)

    def naive_in_blocks(self, q_nope: mx.array, q_rope: mx.array, latents: mx.array, mask: Mask) -> mx.array:
        """Do as `naive`, a block of keys at a time, the softmax running along (arXiv 1805.02867).

        Neither the keys and values of all heads nor the scores of all keys are ever held at once.
        """
        queries = mx.concatenate([q_nope, q_rope], axis=-1) * self.scale
        length, keys = queries.shape[2], latents.shape[2]
        running = Running.start(queries, self.v_up_proj.weight.shape[1])
        for begin in range(0, keys, BLOCK):
            end = min(begin + BLOCK, keys)
            # Not before all of the block before it is done, or its weights would be kept for the norm.
            block = mx.depends(latents[:, :, begin:end], [running.total, running.norm])
            c, k_rope = mx.split(block, [self.latent], axis=-1)
            k_nope = self.k_up_proj(c)  # [batch, heads, block, nope_dim]
            k_rope = mx.broadcast_to(k_rope, (*k_nope.shape[:3], self.rope_dim))
            scores = queries @ mx.concatenate([k_nope, k_rope], axis=-1).swapaxes(-1, -2)
            visible = _visible(mask, begin, end, length, keys)
            running = running.with_block(scores, visible, self.v_up_proj(c))
        return running.result(queries.dtype)

    def absorbed(self, q_nope: mx.array, q_rope: mx.array, latents: mx.array, mask: Mask) -> mx.array:
        """Attend to the latents themselves: [batch, heads, length, value_dim].

        All heads see the same keys: those of all tokens are the rows of one matrix, and no key is repeated.
        """
        queries = mx.concatenate([self.k_up_proj.transposed(q_nope), q_rope], axis=-1)
        batch, heads, length, width = queries.shape
        rows = queries.swapaxes(1, 2).reshape(batch, 1, length * heads, width)
        keys = latents.shape[2]
        visible = _visible(mask, 0, keys, length, keys)
        if visible is not None and length > 1:
            visible = mx.repeat(visible, heads, axis=-2)
        mixed = attend(rows, latents, latents[..., : self.latent], scale=self.scale, mask=visible)
        return self.v_up_proj(mixed.reshape(batch, length, heads, -1).swapaxes(1, 2))

    def _cheaper(self, positions: Positions, keys: int) -> Callable[..., mx.array]:
        """Return the form to compute with."""
        scores = self.heads * positions.length * keys * SCORE_BYTES
        if positions.offset and positions.length < self.absorb_below and scores <= SCORES:
            return self.absorbed
        return self.naive if keys <= BLOCK else self.naive_in_blocks

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
        form = self._cheaper(positions, latents.shape[2])
        return self.o_proj(merge_heads(form(q_nope, q_rope, latents, mask)))
