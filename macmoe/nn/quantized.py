"""Stacks of matrices, plain or packed, and the exchange of plain modules for packed ones.

MLX has Linear and Embedding in both forms; the stacks here are its missing third: [stack, out, in] with one
matrix per expert or per head. NVFP4 can have a global scale: the largest magnitude of a matrix, from which
MLX chooses the units of its E4M3 scales. Its products ignore it, so the results are multiplied here.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Integer
from mlx.utils import tree_unflatten

from macmoe.config import Quantization
from macmoe.errors import ConfigError
from macmoe.kernels.experts import Stack
from macmoe.kernels.packed import Packing, packing_of
from macmoe.nn.unpacking import packed_is_slow, product_in_pieces, readable_bytes

PARTS = ("weight", "scales", "biases", "global_scale")  # of a packed matrix, under MLX's names
# The largest NVFP4 weight with the largest scale: what a global scale is mapped to.
NVFP4_RANGE = 6.0 * 448.0
ALL = slice(None)


def packed_arrays(shape: tuple[int, ...], how: Quantization) -> dict[str, mx.array]:
    """Return empty arrays of packed matrices [..., out, in]; a global scale is one number per matrix.

    Raises:
        ConfigError: `in` is not a multiple of the group size.
    """
    *rows, columns = shape
    if columns % how.group_size:
        raise ConfigError(f"a matrix with {columns} inputs cannot be packed in groups of {how.group_size}")
    groups = (*rows, columns // how.group_size)
    arrays = {"weight": mx.zeros((*rows, columns * how.bits // 32), dtype=mx.uint32)}
    if how.mode == "affine":
        return arrays | {"scales": mx.zeros(groups), "biases": mx.zeros(groups)}
    arrays["scales"] = mx.zeros(groups, dtype=mx.uint8)
    return arrays | {"global_scale": mx.ones(shape[:-2])} if how.global_scale else arrays


def globally_scaled(y: mx.array, global_scale: mx.array) -> mx.array:
    """Multiply products with NVFP4 weights by what their global scale stands for, rounding once."""
    return (y.astype(mx.float32) * (global_scale / NVFP4_RANGE)).astype(y.dtype)


class ScaledLinear(nn.QuantizedLinear):
    """MLX's packed matrix, in NVFP4 with a global scale."""

    def __init__(self, inputs: int, outputs: int, bias: bool, how: Quantization) -> None:
        super().__init__(inputs, outputs, bias, how.group_size, how.bits, how.mode)
        self.global_scale = mx.array(1.0)
        self.freeze()

    def __call__(self, x: Float[mx.array, "*rows inputs"]) -> Float[mx.array, "*rows outputs"]:
        """Return x W^T, plus the bias if there is one."""
        y = mx.quantized_matmul(
            x, self.weight, self.scales, group_size=self.group_size, bits=self.bits, mode=self.mode
        )
        y = globally_scaled(y, self.global_scale)
        return y + self.bias if "bias" in self else y


class StackedLinear(nn.Module):
    """Matrices [stack, out, in], optionally with biases [stack, out], plain or packed.

    Args:
        stack: Number of matrices.
        inputs: Input width of each.
        outputs: Output width of each.
        bias: Whether there are biases.
    """

    def __init__(self, stack: int, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.quantization: Quantization | None = None
        self.weight = mx.random.uniform(-(inputs**-0.5), inputs**-0.5, (stack, outputs, inputs))
        if bias:
            self.bias = mx.zeros((stack, outputs))

    @property
    def bits(self) -> int:
        """Bits of a code, under the name that MLX's packed modules give it; so too the next two."""
        return self._packing().bits

    @property
    def group_size(self) -> int:
        """Weights that share a scale."""
        return self._packing().group_size

    @property
    def mode(self) -> str:
        """The kind of packing."""
        return self._packing().mode

    def _packing(self) -> Quantization:
        if self.quantization is None:
            raise AttributeError("this matrix is not packed")
        return self.quantization

    def pack(self, how: Quantization) -> None:
        """Replace the weight by empty packed arrays."""
        for name, array in packed_arrays(self.weight.shape, how).items():
            self[name] = array
        self.quantization = how
        self.freeze(keys=list(PARTS), strict=False)

    def stack(self, dtype: mx.Dtype) -> Stack | None:
        """Return the matrices for the kernels; None if those cannot read them, with this activation type."""
        how = self.quantization
        packing = Packing() if how is None else packing_of(how.mode, how.bits, how.group_size)
        if packing is None or (how is not None and how.global_scale):
            return None
        return Stack.fitting(packing, {part: self[part] for part in (*PARTS, "bias") if part in self}, dtype)


class ExpertLinear(StackedLinear):
    """One matrix per expert; each row of the input goes through the experts chosen for it."""

    def __call__(
        self,
        x: Float[mx.array, "*rows one inputs"],
        experts: Integer[mx.array, "*chosen"],
        *,
        in_order: bool = False,
    ) -> Float[mx.array, "*chosen one outputs"]:
        """Multiply x [..., 1, in] by the matrices of `experts` [...]; `in_order`: those ascend."""
        how = self.quantization
        if how is None:
            weight = self.weight.swapaxes(-1, -2)
            y = mx.gather_mm(x, weight, rhs_indices=experts, sorted_indices=in_order)
        elif in_order and packed_is_slow() and not how.global_scale:
            y = self._unpacked_product(x, experts, how)
        else:
            y = self._packed_product(x, experts, how, in_order=in_order)
            if how.global_scale:
                y = globally_scaled(y, self["global_scale"][experts][..., None, None])
        return y + self.bias[experts][..., None, :] if "bias" in self else y

    def _packed_product(
        self, x: mx.array, experts: mx.array, how: Quantization, *, in_order: bool
    ) -> mx.array:
        def gather(own: slice, experts: mx.array) -> mx.array:
            return mx.gather_qmm(
                x,
                self.weight[own],
                self["scales"][own],
                self["biases"][own] if "biases" in self else None,
                rhs_indices=experts,
                sorted_indices=in_order,
                group_size=how.group_size,
                bits=how.bits,
                mode=how.mode,
            )

        count = len(self.weight)
        step = count * readable_bytes() // self.weight.nbytes
        if step >= count:
            return gather(slice(None), experts)
        y = gather(slice(step), mx.minimum(experts, step - 1))
        for begin in range(step, count, step):
            end = min(begin + step, count)
            part = gather(slice(begin, end), mx.clip(experts, begin, end - 1) - begin)
            y = mx.where((experts >= begin)[..., None, None], part, y)
        return y

    def _unpacked_product(self, x: mx.array, experts: mx.array, how: Quantization) -> mx.array:
        def multiply(rows: mx.array, matrices: mx.array) -> mx.array:
            return mx.gather_mm(rows, matrices, rhs_indices=experts, sorted_indices=True)

        *rows, words = self.weight.shape
        parts = {name: self[name] for name in PARTS if name in self}
        return product_in_pieces(x, parts, how, (*rows, words * 32 // how.bits), multiply)


class HeadLinear(StackedLinear):
    """One matrix per attention head."""

    def __call__(
        self, x: Float[mx.array, "batch _ length inputs"], heads: slice = ALL
    ) -> Float[mx.array, "batch heads length outputs"]:
        """Return x W^T for every head, or for some; x has one head or as many."""
        return self._of_batch(x, heads, transpose=True)

    def transposed(
        self, x: Float[mx.array, "batch heads length outputs"]
    ) -> Float[mx.array, "batch heads length inputs"]:
        """Return x W for every head."""
        return self._of_batch(x, ALL, transpose=False)

    def by_head(
        self, x: Float[mx.array, "_ rows inputs"], heads: slice = ALL, *, transpose: bool = True
    ) -> Float[mx.array, "heads rows outputs"]:
        """Return x W^T for every head, or for some, or x W; x has one head or as many."""
        how, weight = self.quantization, self.weight[heads]
        if how is None:
            return x @ (weight.swapaxes(-1, -2) if transpose else weight)
        y = mx.quantized_matmul(
            x,
            weight,
            self["scales"][heads],
            self["biases"][heads] if "biases" in self else None,
            transpose=transpose,
            group_size=how.group_size,
            bits=how.bits,
            mode=how.mode,
        )
        return globally_scaled(y, self["global_scale"][heads, None, None]) if how.global_scale else y

    def _of_batch(self, x: mx.array, heads: slice, *, transpose: bool) -> mx.array:
        """Take the rows of all sequences together: a head's matrix is then read once.

        MLX's CUDA products need it: rows of several sequences by one packed stack come out wrong (0.32.4).
        """
        batch, given, length, _ = x.shape
        y = self.by_head(x.swapaxes(0, 1).reshape(given, batch * length, -1), heads, transpose=transpose)
        return y.reshape(len(y), batch, length, -1).swapaxes(0, 1)


def _packed_linear(plain: nn.Linear, how: Quantization) -> nn.Module:
    outputs, inputs = plain.weight.shape
    if how.global_scale:
        return ScaledLinear(inputs, outputs, "bias" in plain, how)
    return nn.QuantizedLinear(inputs, outputs, "bias" in plain, how.group_size, how.bits, how.mode)


def _packed_embedding(plain: nn.Embedding, how: Quantization) -> nn.Module:
    vocab, dim = plain.weight.shape
    if how.global_scale:
        raise ConfigError("an embedding cannot be packed with a global scale")
    return nn.QuantizedEmbedding(vocab, dim, how.group_size, how.bits, how.mode)


def _packed_stack(plain: StackedLinear, how: Quantization) -> nn.Module:
    plain.pack(how)
    return plain


PACKED = {
    nn.Linear: _packed_linear,
    nn.Embedding: _packed_embedding,
    ExpertLinear: _packed_stack,
    HeadLinear: _packed_stack,
}


def pack_modules(model: nn.Module, how: Mapping[str, Quantization]) -> None:
    """Exchange the modules at these paths for packed ones with empty weights.

    Raises:
        ConfigError: A path is not a matrix of the model, or cannot be packed that way.
    """
    modules = dict(model.named_modules())
    exchanged = []
    for path, quantization in how.items():
        module = modules.get(path)
        make = PACKED.get(type(module))
        if module is None or make is None:
            raise ConfigError(f"quantization names '{path}', which is not a matrix of this model")
        packed_arrays(
            module.weight.shape, quantization
        )  # checks the group size before MLX raises its own error
        exchanged.append((path, make(module, quantization)))
    model.update_modules(tree_unflatten(exchanged))
