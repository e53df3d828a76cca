"""Low-rank adaptation (LoRA, arXiv 2106.09685) of every kind of matrix that the families have.

    y = W x + scale * B (A x)      A [rank, in], B [out, rank], scale = alpha / rank

rsLoRA (arXiv 2312.03732) has scale = alpha / sqrt(rank). DoRA (arXiv 2402.09353) gives each row of
W + scale B A a learned length. Factors are PEFT's, one more axis in front for experts and heads; they are
float32 and take part in the computation in its type. W, plain or packed, is only ever read. Checked against
peft 0.21.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.config import Quantization
from macmoe.errors import UsageError
from macmoe.models.deepseek_v3 import Router
from macmoe.nn.quantized import ALL, NVFP4_RANGE, ExpertLinear, HeadLinear, StackedLinear
from macmoe.nn.routing import Routes, router_logits

FACTORS = ("lora_a", "lora_b", "magnitude")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """How one matrix is adapted.

    Attributes:
        rank: Inner width.
        alpha: Strength, see `scale`.
        rslora: Divide alpha by the square root of the rank.
        dora: Learn the rows' lengths apart (plain matrices only).
        shared: All experts share the factor on the side of the residual stream: A of gate and up, B of down.
    """

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise UsageError(f"the rank of an adapter is {self.rank!r}; it has to be 1 or more")
        if not (isinstance(self.alpha, (int, float)) and math.isfinite(self.alpha)):
            raise UsageError(f"alpha of an adapter is {self.alpha!r}; it has to be a number")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def _times(x: mx.array, matrix: mx.array) -> mx.array:
    """Return x M^T in the type of x, M [..., out, in]."""
    return x @ matrix.astype(x.dtype).swapaxes(-1, -2)


class LowRank(nn.Module):
    """A frozen matrix with its adapter. Subclasses say how the factors are applied.

    Args:
        base: The adapted module.
        spec: Rank and scale.
        shapes: The shapes of the factors, by name.
    """

    base: Any
    lora_a: mx.array
    lora_b: mx.array

    def __init__(self, base: nn.Module, spec: LoraSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.base = base
        self.spec = spec
        for name, shape in shapes.items():
            self[name] = mx.zeros(shape)
        self.base.freeze()

    @property
    def factors(self) -> dict[str, mx.array]:
        """The factors, by name."""
        return {name: self[name] for name in FACTORS if name in self}

    def initialize(self, key: mx.array) -> None:
        """Draw A uniformly within 1 / sqrt(in), as PEFT does; B stays 0, so that nothing changes at first."""
        if "lora_a" in self:
            bound = self.lora_a.shape[-1] ** -0.5
            self.lora_a = mx.random.uniform(-bound, bound, self.lora_a.shape, key=key)

    def delta(self) -> mx.array:
        """Return what the adapter adds to the matrix, float32."""
        return self.spec.scale * (self.lora_b @ self.lora_a)

    def merged(self, weight: mx.array) -> mx.array:
        """Return the adapted matrix, given the base's in float32."""
        return weight + self.delta()


def packing_of(base: Any) -> Quantization | None:
    """Return how a matrix is packed, MLX's or ours; None if it is not."""
    if isinstance(base, StackedLinear):
        return base.quantization
    if isinstance(base, nn.QuantizedLinear):
        how = Quantization(group_size=base.group_size, bits=base.bits, mode=base.mode)
        return replace(how, global_scale="global_scale" in base)
    return None


def matrix_shape(base: Any) -> tuple[int, ...]:
    """Return the shape [..., out, in] of a matrix, packed or not."""
    *rows, columns = base.weight.shape
    how = packing_of(base)
    return (*rows, columns * 32 // how.bits if how else columns)


def decoded(base: Any) -> mx.array:
    """Return a matrix [..., out, in] in float32."""
    how = packing_of(base)
    if how is None:
        return base.weight.astype(mx.float32)
    values = mx.dequantize(
        base.weight,
        base["scales"],
        base.get("biases"),
        group_size=how.group_size,
        bits=how.bits,
        mode=how.mode,
        dtype=mx.float32,
    )
    return values * (base["global_scale"] / NVFP4_RANGE)[..., None, None] if how.global_scale else values


class LoraLinear(LowRank):
    """An adapted nn.Linear, nn.QuantizedLinear or ScaledLinear."""

    def __init__(self, base: nn.Module, spec: LoraSpec) -> None:
        outputs, inputs = matrix_shape(base)
        super().__init__(base, spec, {"lora_a": (spec.rank, inputs), "lora_b": (outputs, spec.rank)})

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the matrix and its adapter."""
        return self.base(x) + _times(self.spec.scale * _times(x, self.lora_a), self.lora_b)


class DoraLinear(LoraLinear):
    """An adapted nn.Linear, nn.QuantizedLinear or ScaledLinear with learned lengths of its rows.

    y = m / |W + scale B A| * (W x + scale B A x) + bias, the norm of each row taken as a constant (section
    4.3 of the paper).
    """

    def __init__(self, base: nn.Module, spec: LoraSpec) -> None:
        super().__init__(base, spec)
        self._squares = (decoded(base) ** 2).sum(axis=-1)
        self.magnitude = mx.sqrt(self._squares)

    def _bias(self) -> mx.array | float:
        return self.base.bias if "bias" in self.base else 0.0

    def _norms(self) -> mx.array:
        """Return |W + scale B A| [out] without that matrix: |W|^2 + 2 scale W A^T . B + scale^2 |B A|^2."""
        a, b, scale = self.lora_a, self.lora_b, self.spec.scale
        images = (self.base(a) - self._bias()).T  # [out, rank], W A^T
        squares = self._squares + scale * ((2 * images + scale * (b @ (a @ a.T))) * b).sum(axis=-1)
        return mx.stop_gradient(mx.sqrt(squares))

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the matrix, its adapter and the lengths."""
        y = super().__call__(x) - self._bias()
        return y * (self.magnitude / self._norms()).astype(y.dtype) + self._bias()

    def merged(self, weight: mx.array) -> mx.array:
        """Return the adapted matrix, given the base's in float32."""
        weight = super().merged(weight)
        return weight * (self.magnitude / mx.linalg.norm(weight, axis=-1))[:, None]


class ExpertLora(LowRank):
    """Adapted routed experts: a pair of factors each, or one factor of the pair for all of them.

    Args:
        base: The experts' matrices.
        spec: Rank and scale.
        outward: The matrix leads back to the residual stream, where `spec.shared` shares B.
    """

    def __init__(self, base: ExpertLinear, spec: LoraSpec, *, outward: bool) -> None:
        experts, outputs, inputs = matrix_shape(base)
        a_stack = () if spec.shared and not outward else (experts,)
        b_stack = () if spec.shared and outward else (experts,)
        shapes = {"lora_a": (*a_stack, spec.rank, inputs), "lora_b": (*b_stack, outputs, spec.rank)}
        super().__init__(base, spec, shapes)

    def __call__(self, x: mx.array, experts: mx.array, *, in_order: bool = False) -> mx.array:
        """Multiply x [..., 1, in] by the adapted matrices of `experts` [...]; `in_order`: those ascend."""

        def times(x: mx.array, factor: mx.array) -> mx.array:
            if factor.ndim == 2:
                return _times(x, factor)
            matrices = factor.astype(x.dtype).swapaxes(-1, -2)
            return mx.gather_mm(x, matrices, rhs_indices=experts, sorted_indices=in_order)

        inner = self.spec.scale * times(x, self.lora_a)
        return self.base(x, experts, in_order=in_order) + times(inner, self.lora_b)


class HeadLora(LowRank):
    """Adapted up-projections of latent attention: one A for all heads, one B each.

    LoRA of the hub's kv_b_proj has a single A for keys and values: where both are adapted, the values borrow
    the keys' A.

    Args:
        base: One matrix per head.
        spec: Rank and scale.
        lender: The keys' adapter, for the values'.
    """

    def __init__(self, base: HeadLinear, spec: LoraSpec, lender: HeadLora | None = None) -> None:
        heads, outputs, inputs = matrix_shape(base)
        own = {} if lender else {"lora_a": (spec.rank, inputs)}
        super().__init__(base, spec, {**own, "lora_b": (heads, outputs, spec.rank)})
        owner = lender or self
        self._inward = lambda: owner.lora_a  # not a child: it belongs to the owner alone

    @property
    def inward(self) -> mx.array:
        """A, own or borrowed."""
        return self._inward()

    def __call__(self, x: mx.array, heads: slice = ALL) -> mx.array:
        """Return x (W + scale B A)^T for every head, or for some."""
        inner = self.spec.scale * _times(x, self.inward)
        return self.base(x, heads) + _times(inner, self.lora_b[heads])

    def transposed(self, x: mx.array) -> mx.array:
        """Return x (W + scale B A) for every head."""
        inner = self.spec.scale * (x @ self.lora_b.astype(x.dtype))
        return self.base.transposed(x) + inner @ self.inward.astype(x.dtype)

    def delta(self) -> mx.array:
        """Return what the adapter adds to the matrices, float32."""
        return self.spec.scale * (self.lora_b @ self.inward)


class RouterLora(LowRank):
    """An adapted router of DeepSeek-V3; the other families' routers are linear layers."""

    def __init__(self, base: Router, spec: LoraSpec) -> None:
        experts, dim = base.weight.shape
        super().__init__(base, spec, {"lora_a": (spec.rank, dim), "lora_b": (experts, spec.rank)})

    def __call__(self, x: mx.array) -> Routes:
        """Return the chosen experts and their weights."""
        return self.base.choose(router_logits(x, self.score))

    def score(self, x: mx.array) -> mx.array:
        """Apply the matrix and its adapter."""
        return self.base.score(x) + _times(self.spec.scale * _times(x, self.lora_a), self.lora_b)
