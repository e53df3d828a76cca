"""Packed matrices that are unpacked for the moment of their use: see macmoe.nn.unpacking, which multiplies.

The modules of a model unpack only sorted experts. For training and for many replies at once all matrices have
many rows, so all are exchanged; the packed arrays stay what they are.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macmoe.adapters.lora import matrix_shape, packing_of
from macmoe.nn.quantized import ExpertLinear
from macmoe.nn.unpacking import PIECE, Product, packed_is_slow, product_in_pieces


def training_unpacks() -> bool:
    """Return whether a step of training unpacks here: packed kernels of a CPU take each row for itself."""
    return packed_is_slow() or mx.default_device() == mx.Device(mx.cpu)


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

    def _product(self, x: mx.array, multiply: Product) -> mx.array:
        how: Any = packing_of(self.base)
        parts = {name: self.base[name] for name in ("weight", "scales", "biases") if name in self.base}
        return product_in_pieces(x, parts, how, matrix_shape(self.base), multiply, self.piece)


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
