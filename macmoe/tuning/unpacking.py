"""Products of many rows with packed matrices, by unpacking a matrix for the moment of its use.

MLX's CUDA back end multiplies many rows by packed matrices much more slowly than by plain ones. There, for
training, a matrix is unpacked in the type of the activations, a piece at a time, in the forward pass and once
more for the gradient; the packed arrays stay what they are. On Metal the packed kernels are made for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macmoe.adapters.lora import matrix_shape, packing_of
from macmoe.nn.quantized import ExpertLinear

PIECE = 2**29  # bytes that are unpacked at once

Product = Callable[[mx.array, mx.array], mx.array]


def unpacking_pays() -> bool:
    """Return whether this is the back end whose packed kernels are slow."""
    return mx.default_device() == mx.Device(mx.gpu) and not mx.metal.is_available()


class Unpacked(nn.Module):
    """A packed matrix, or a stack of them, that is unpacked for every product with many rows.

    Args:
        base: The module with the packed arrays.
        piece: Bytes that are unpacked at once.
    """

    def __init__(self, base: nn.Module, piece: int = PIECE) -> None:
        super().__init__()
        self.base: Any = base
        self.piece = piece
        if "bias" in base:
            self.bias = base["bias"]
        self.freeze()

    def __call__(self, x: mx.array, experts: mx.array | None = None, *, in_order: bool = False) -> mx.array:
        """Multiply x by the matrix, or [..., 1, in] by the matrices of `experts`, which ascend."""
        if experts is None:
            y = self._product(x, lambda x, matrix: x @ matrix)
        elif in_order:
            y = self._product(
                x, lambda x, matrix: mx.gather_mm(x, matrix, rhs_indices=experts, sorted_indices=True)
            )
        else:
            return self.base(x, experts)
        if "bias" not in self:
            return y
        return y + (self.bias if experts is None else self.bias[experts][..., None, :])

    def _pieces(self, dtype: mx.Dtype) -> list[slice]:
        """Cut the outputs so that each piece has the size."""
        *stack, outputs, inputs = matrix_shape(self.base)
        row = (stack[0] if stack else 1) * inputs * dtype.size
        step = max(1, self.piece // row)
        step = -(-outputs // -(-outputs // step))  # pieces of one size
        return [slice(begin, begin + step) for begin in range(0, outputs, step)]

    def _unpacked(self, piece: slice, dtype: mx.Dtype, after: mx.array) -> mx.array:
        """Return a piece [..., out, in], not before `after` is there: nothing is unpacked ahead."""
        how: Any = packing_of(self.base)
        parts = [self.base[name] for name in ("weight", "scales", "biases") if name in self.base]
        parts = mx.depends([part[..., piece, :] for part in parts], [after])
        return mx.dequantize(*parts, group_size=how.group_size, bits=how.bits, mode=how.mode, dtype=dtype)

    def _product(self, x: mx.array, multiply: Product) -> mx.array:
        pieces = self._pieces(x.dtype)

        def forward(x: mx.array) -> mx.array:
            found: list[mx.array] = []
            for piece in pieces:
                matrix = self._unpacked(piece, x.dtype, found[-1] if found else x)
                found.append(multiply(x, matrix.swapaxes(-1, -2)))
            return mx.concatenate(found, axis=-1) if len(found) > 1 else found[0]

        product: Any = mx.custom_function(forward)

        @product.vjp
        def _backward(_: mx.array, outward: mx.array, __: mx.array) -> mx.array:
            total: mx.array | None = None
            for piece in pieces:
                part = mx.contiguous(outward[..., piece])
                matrix = self._unpacked(piece, outward.dtype, part if total is None else total)
                inward = multiply(part, matrix)
                total = inward if total is None else total + inward
            assert total is not None
            return total

        return product(x)


def _is_packed(module: nn.Module) -> bool:
    if type(module) not in (nn.QuantizedLinear, ExpertLinear):
        return False
    how = packing_of(module)
    return how is not None and not how.global_scale


def unpack_products(model: nn.Module, piece: int = PIECE) -> None:
    """Exchange the packed matrices of a model."""
    found: Any = [(path, Unpacked(each, piece)) for path, each in model.named_modules() if _is_packed(each)]
    model.update_modules(tree_unflatten(found))


def keep_packed(model: nn.Module) -> None:
    """Put the matrices back."""
    found: Any = [(path, each.base) for path, each in model.named_modules() if isinstance(each, Unpacked)]
    model.update_modules(tree_unflatten(found))
