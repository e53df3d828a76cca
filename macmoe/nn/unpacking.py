"""Products of many rows with packed matrices where MLX's packed kernels are slow: unpack, a piece at a time.

MLX's CUDA back end multiplies each row by packed experts on its own, and its grouped products of plain
matrices are many times faster. So for many rows a stack is unpacked in the type of the activations, some
outputs of all experts at a time, in the forward pass and once more for the gradient. The packed arrays stay
what they are. On Metal the packed kernels are made for it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from macmoe.config import Quantization
from macmoe.kernels import source
from macmoe.nn.pieces import after, cut

PIECE = 2**28  # bytes that are unpacked at once
TILE = 128  # outputs of a piece are a multiple, where there are that many: what matrix units work on

Product = Callable[[mx.array, mx.array], mx.array]


def packed_is_slow() -> bool:
    """Return whether this is a GPU whose packed kernels are slow at many rows."""
    return source.on_cuda()


def readable_bytes() -> int:
    """Return how many bytes a stack may have for MLX to gather packed matrices from it.

    Its CUDA products of eight and more rows hold offsets in 32 bits with a sign (0.32.4): they take other
    experts from 2 GiB on, silently.
    """
    return 2**31 - 1 if packed_is_slow() else 2**63 - 1


def pieces(shape: tuple[int, ...], dtype: mx.Dtype, piece: int) -> list[slice]:
    """Cut the outputs of matrices [..., out, in] into pieces of about the size, when unpacked, at most."""
    *stack, outputs, inputs = shape
    row = (stack[0] if stack else 1) * inputs * dtype.size
    step = max(1, piece // row)
    step = step // TILE * TILE if step >= TILE else step
    return cut(outputs, step)


def product_in_pieces(
    x: mx.array,
    parts: Mapping[str, mx.array],
    how: Quantization,
    shape: tuple[int, ...],
    multiply: Product,
    piece: int = PIECE,
) -> mx.array:
    """Multiply x by packed matrices, unpacked in pieces; differentiable with respect to x.

    Args:
        x: Activations [..., in].
        parts: weight, scales and perhaps biases of the matrices.
        how: Their packing.
        shape: Their shape [..., out, in].
        multiply: Multiplies x by plain matrices [..., in, out].
        piece: Bytes that are unpacked at once.
    """
    cuts = pieces(shape, x.dtype, piece)

    def unpacked(outputs: slice, dtype: mx.Dtype, earlier: mx.array) -> mx.array:
        """Return a piece [..., out, in], not before `earlier` is there: nothing is unpacked ahead."""
        kept = [parts[name] for name in ("weight", "scales", "biases") if name in parts]
        kept = [after(part[..., outputs, :], [earlier]) for part in kept]
        return mx.dequantize(*kept, group_size=how.group_size, bits=how.bits, mode=how.mode, dtype=dtype)

    def forward(x: mx.array) -> mx.array:
        found: list[mx.array] = []
        for outputs in cuts:
            matrix = unpacked(outputs, x.dtype, found[-1] if found else x)
            found.append(multiply(x, matrix.swapaxes(-1, -2)))
        return mx.concatenate(found, axis=-1) if len(found) > 1 else found[0]

    product: Any = mx.custom_function(forward)

    @product.vjp
    def _backward(_: mx.array, outward: mx.array, __: mx.array) -> mx.array:
        total: mx.array | None = None
        for outputs in cuts:
            part = mx.contiguous(outward[..., outputs])
            inward = multiply(part, unpacked(outputs, outward.dtype, part if total is None else total))
            total = inward if total is None else total + inward
        assert total is not None
        return total

    return product(x)
