"""Mixture of experts: the chosen experts' MLPs, weighted and summed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Integer

from macmoe.kernels import experts as kernels
from macmoe.nn.mlp import clamped_swiglu, swiglu
from macmoe.nn.pieces import after, cut
from macmoe.nn.quantized import ExpertLinear

# (token, expert) pairs per expert from which on sorting the pairs by expert pays: each expert's matrix is
# then read once. MLX's kernel for sorted pairs starts there too; with fewer, sorting costs more than it
# saves.
PAIRS_PER_EXPERT = 4
SUMMED = 2**28  # bytes of rows, as they are and in float32, that are weighted at once

Activation = Callable[[mx.array, mx.array], mx.array]


def routed_bytes(top_k: int, dim: int, hidden_dim: int) -> int:
    """Return the bytes that the rows of one token take at most, in 16 bits.

    A product's outputs are there twice for a moment where they were computed in pieces.
    """
    gate_up = dim + 2 * (2 * hidden_dim)
    down = hidden_dim + 2 * dim
    return top_k * 2 * max(gate_up, down)


def weighted_sum(y: mx.array, weights: mx.array, dtype: mx.Dtype) -> mx.array:
    """Sum the outputs of each token's experts in float32: [tokens, top_k, dim] -> [tokens, dim]."""
    return (y * weights[..., None]).sum(axis=-2).astype(dtype)


def _dispatch(x: mx.array, order: mx.array, _: mx.array) -> mx.array:
    """Copy each token to the rows of its experts: [tokens, dim] -> [tokens * top_k, 1, dim].

    The axis goes in before the rows are taken, here and in the gradient of `combine`: behind an inserted axis
    MLX's sorted kernels (Metal and CUDA, mlx issue 4253) read the wrong rows, silently.

    Args:
        x: Tokens.
        order: The (token, expert) pair of each row, sorted by expert [tokens * top_k].
        _: The row of each pair, for the gradient: the inverse of `order`.
    """
    return x[:, None][order // (len(order) // len(x))]


def _combine(rows: mx.array, weights: mx.array, _: mx.array, places: mx.array) -> mx.array:
    """Return the weighted sum over each token's rows, in float32, of some tokens at a time.

    [tokens * top_k, 1, dim] -> [tokens, dim]; the last two arguments are order and places, as above.
    """
    tokens, top_k = weights.shape
    places = places.reshape(tokens, top_k)
    found: list[mx.array] = []
    of_token = top_k * rows.shape[-1] * (rows.itemsize + 4)
    for some in cut(tokens, max(1, SUMMED // of_token)):
        y = rows[after(places[some], found[-1:])].squeeze(-2)  # [tokens, top_k, dim]
        found.append(weighted_sum(y, weights[some], rows.dtype))
    return mx.concatenate(found)


dispatch: Any = mx.custom_function(_dispatch)
combine: Any = mx.custom_function(_combine)


@dispatch.vjp
def _dispatch_vjp(
    primals: tuple[mx.array, ...], rows: mx.array, _: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """Collect a token's gradients by its places: a sum in order, where MLX would add them up at random."""
    x, order, places = primals
    return rows[places].reshape(len(x), -1, x.shape[-1]).sum(axis=1), order, places


@combine.vjp
def _combine_vjp(
    primals: tuple[mx.array, ...], tokens: mx.array, _: mx.array
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Hand each row its token's gradient, weighted; a weight gets its row's product with that gradient."""
    rows, weights, order, places = primals
    each = tokens[:, None][order // weights.shape[-1]].astype(mx.float32)
    of_rows = (each * weights.flatten()[order][:, None, None]).astype(rows.dtype)
    of_weights = (each * rows).sum(axis=-1)[places].reshape(weights.shape)
    return of_rows, of_weights, order, places


def kernel_activation(activation: Activation) -> tuple[int, float] | None:
    """Return the kind and limit under which the kernels know an activation, None if they do not."""
    if activation is swiglu:
        return kernels.SWIGLU, 0.0
    if isinstance(activation, partial) and activation.func is clamped_swiglu:
        return kernels.CLAMPED_SWIGLU, activation.keywords["limit"]
    return None


def few_tokens(
    stacks: tuple[kernels.Stack, kernels.Stack],
    x: mx.array,
    chosen: mx.array,
    weights: mx.array,
    activation: tuple[int, float],
    shared: tuple[kernels.Stack, kernels.Stack] | None = None,
) -> mx.array:
    """Apply experts to a few tokens by kernels, each expert read once, and return the weighted sum.

    Args:
        stacks: Matrices of gate and up, and of down.
        x: [tokens, dim].
        chosen: Experts of each token [tokens, slots], uint32.
        weights: Theirs [tokens, slots].
        activation: See `kernel_activation`.
        shared: One more expert, see `kernels.expert_rows`.
    """
    up, down = shared or (None, None)
    kind, limit = activation
    hidden = kernels.expert_rows(stacks[0], x, chosen, activation=kind, limit=limit, shared=up)
    y = kernels.expert_rows(stacks[1], hidden, chosen, shared=down)  # [tokens, slots, dim]
    return weighted_sum(y, weights, x.dtype)


class Experts(nn.Module):
    """Routed experts, stacked, gate and up fused in one matrix (gate rows first).

    Args:
        experts: Number of experts.
        dim: Width of the residual stream.
        hidden_dim: Width inside one expert.
        activation: Combines gate and up.
        bias: Whether the matrices have biases.
    """

    def __init__(
        self, experts: int, dim: int, hidden_dim: int, activation: Activation, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.gate_up_proj = ExpertLinear(experts, dim, 2 * hidden_dim, bias=bias)
        self.down_proj = ExpertLinear(experts, hidden_dim, dim, bias=bias)
        self.activation = activation
        self.sort_from = PAIRS_PER_EXPERT * experts
        self.use_kernels = False  # set once they are known to be right and fast here (macmoe.decoding.choice)

    def _mlp(self, x: mx.array, experts: mx.array, *, in_order: bool) -> mx.array:
        """Apply to x [..., 1, dim] the experts [...]."""
        gate, up = mx.split(self.gate_up_proj(x, experts, in_order=in_order), 2, axis=-1)
        return self.down_proj(self.activation(gate, up), experts, in_order=in_order)

    def stacks(self, dtype: mx.Dtype) -> tuple[kernels.Stack, kernels.Stack] | None:
        """Return both stacks for the kernels, None if those cannot read them (adapters, packings)."""
        modules = (self.gate_up_proj, self.down_proj)
        if any(type(module) is not ExpertLinear for module in modules) or not kernel_activation(
            self.activation
        ):
            return None
        gate_up, down = (module.stack(dtype) for module in modules)
        if gate_up is None or down is None or not kernels.usable(gate_up, down):
            return None
        return gate_up, down

    def few(
        self,
        x: mx.array,
        experts: mx.array,
        weights: mx.array,
        stacks: tuple[kernels.Stack, kernels.Stack],
    ) -> mx.array:
        """Apply the experts to a few tokens, each expert read once; the gradient is that of the modules."""
        activation = kernel_activation(self.activation)
        assert activation is not None, "without one the kernels know there are no stacks"

        def forward(x: mx.array, weights: mx.array) -> mx.array:
            return few_tokens(stacks, x, experts.astype(mx.uint32), weights, activation)

        product: Any = mx.custom_function(forward)

        @product.vjp
        def _backward(primals: tuple[mx.array, mx.array], outward: mx.array, _: mx.array) -> list[mx.array]:
            return mx.vjp(lambda x, weights: self._unsorted(x, experts, weights), list(primals), [outward])[1]

        return product(x, weights)

    def _unsorted(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        y = self._mlp(x[:, None, None], experts, in_order=False).squeeze(-2)  # [tokens, top_k, dim]
        return weighted_sum(y, weights, x.dtype)

    def _sorted(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        flat = experts.flatten()  # [tokens * top_k]
        order = mx.argsort(flat)
        places = mx.argsort(order)
        rows = dispatch(x, order, places)  # [tokens * top_k, 1, dim]
        y = self._mlp(rows, flat[order], in_order=True)
        return combine(y, weights, order, places)

    def __call__(
        self,
        x: Float[mx.array, "tokens dim"],
        experts: Integer[mx.array, "tokens top_k"],
        weights: Float[mx.array, "tokens top_k"],
    ) -> Float[mx.array, "tokens dim"]:
        """Return the weighted sum of the chosen experts' outputs, summed in float32."""
        if self.use_kernels and experts.size <= kernels.MAX_PAIRS:
            stacks = self.stacks(x.dtype)
            if stacks is not None:
                return self.few(x, experts, weights, stacks)
        outputs = self._sorted if experts.size >= self.sort_from else self._unsorted
        return outputs(x, experts, weights)
