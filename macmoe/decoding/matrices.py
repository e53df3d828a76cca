"""Matrices as the kernels take them: joined where they read the same input."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from macmoe.kernels import source
from macmoe.kernels.experts import NONE, Stack, expert_rows
from macmoe.kernels.packed import Packing, packing_of

PARTS = ("weight", "scales", "biases")  # of a matrix, row by row
# Bytes of a packed matrix from which on the experts' kernel pays instead of MLX's on CUDA: with less, what
# the GPU gains is lost on the host, which hands over one of MLX's own kernels faster.
LARGE = 6 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One matrix, or several with the same input and the same form, outputs side by side.

    Attributes:
        arrays: Its parts.
        bits: Of a packed one; 0 for a plain one.
        group_size: Of a packed one.
        mode: Of a packed one.
        bias: Added to the product by whoever uses it next.
        transposed: A plain one [in, out].
        single: The matrix as a stack of one, None if the experts' kernel cannot read it.
    """

    arrays: Mapping[str, mx.array]
    bits: int = 0
    group_size: int = 0
    mode: str = ""
    bias: mx.array | None = None
    transposed: mx.array | None = None
    single: Stack | None = None

    def __call__(self, x: mx.array) -> mx.array:
        """Return x W^T, without the bias."""
        if self.transposed is not None:
            return x @ self.transposed
        large = self.large(x)
        if large is not None:
            return alone(large, x)
        return mx.quantized_matmul(
            x,
            self.arrays["weight"],
            self.arrays["scales"],
            self.arrays.get("biases"),
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )

    def large(self, x: mx.array) -> Stack | None:
        """Return the matrix for `alone` where that is faster for x [tokens, dim]."""
        if len(x) > 1 or self.arrays["weight"].nbytes < LARGE or not mlx_is_slow():
            return None
        return self.single


def mlx_is_slow() -> bool:
    """Return whether MLX's product of one row with a packed matrix is slower than the experts' kernel.

    On an H100 it takes 8.0 us for 5,120 x 2,048 in 4 bits, the kernel 5.9 (MLX 0.32.4); on Metal it is made
    for that.
    """
    return source.on_cuda()


def alone(stack: Stack, x: mx.array, activation: int = NONE) -> mx.array:
    """Multiply one token [1, dim] by a stack of one matrix: the only expert there is."""
    return expert_rows(stack, x, _only(), activation=activation).reshape(1, -1)


@functools.cache
def _only() -> mx.array:
    """Return the choice of the only expert [1, 1], computed once, not as a kernel per token.

    Cut from a longer array: what has 8 bytes or less, MLX keeps in managed memory on CUDA (0.32.4).
    """
    only = mx.zeros((64, 1), dtype=mx.uint32)[:1]
    mx.eval(only)
    return only


def join(matrices: Sequence[nn.Module], dtype: mx.Dtype) -> Matrix | None:
    """Return matrices with the same input as one, None if they differ in form or are more than matrices.

    The joined arrays take the place of the single ones, which become views of them: nothing is held twice.

    Args:
        matrices: Whose outputs stand side by side.
        dtype: Of their input.
    """
    forms = {_form(matrix) for matrix in matrices}
    form = forms.pop()
    if forms or form is None:
        return None
    arrays = {part: matrices[0][part] for part in PARTS if part in matrices[0]}
    if len(matrices) > 1:
        arrays = {part: mx.concatenate([matrix[part] for matrix in matrices]) for part in arrays}
        mx.eval(arrays)
        _take_views(matrices, arrays)
    biases = [matrix["bias"] for matrix in matrices if "bias" in matrix]
    bias = mx.concatenate(biases) if len(biases) == len(matrices) else None
    if bias is not None:
        mx.eval(bias)  # not once per token, in the compiled step
    _, bits, group_size, mode, _ = form
    packing = packing_of(mode, bits, group_size) if bits else Packing()
    # Views are made now: as a part of the step they would be made for every token.
    transposed = None if bits else arrays["weight"].T
    stacked = {part: array[None] for part, array in arrays.items()}
    mx.eval(transposed, stacked)
    return Matrix(
        arrays=arrays,
        bits=bits,
        group_size=group_size,
        mode=mode,
        bias=bias,
        transposed=transposed,
        single=None if packing is None else Stack.fitting(packing, stacked, dtype),
    )


def _form(matrix: nn.Module) -> tuple[bool, int, int, str, mx.Dtype] | None:
    """Return what matrices must share to be joined; None for modules that do more than a matrix."""
    if type(matrix) is nn.Linear:
        return ("bias" in matrix, 0, 0, "", matrix.weight.dtype)
    if type(matrix) is nn.QuantizedLinear:
        return ("bias" in matrix, matrix.bits, matrix.group_size, matrix.mode, matrix.scales.dtype)
    return None


def _take_views(matrices: Sequence[nn.Module], joined: Mapping[str, mx.array]) -> None:
    begin = 0
    for matrix in matrices:
        end = begin + matrix["weight"].shape[0]
        for part, array in joined.items():
            matrix[part] = array[begin:end]
        begin = end
    mx.eval([matrix[part] for matrix in matrices for part in joined])
