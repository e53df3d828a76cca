"""Tensors as the rules see them, and how published packings become MLX's without changing one weight.

MLX packs a matrix row by row: codes in uint32 words, first code lowest, and one scale per group of inputs.
Whatever moves whole rows is therefore exact on packed matrices. What cannot stay packed is decoded to
float32, which is exact too (MXFP4 and E4M3 have at most four significant bits; a product with a float32 scale
is rounded once).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import mlx.core as mx
import numpy as np

from macmoe.checkpoint import DTYPES, NAN_SCALE
from macmoe.config import Quantization
from macmoe.shards import TensorInfo
from macmoe_converters.quantizing import global_scales, pack, unpack
from macmoe_converters.recipes import suitable
from macmoe_converters.rows import Array, Rows, cast, computed, from_mlx, several, to_mlx

GLOBAL_SCALE = "global_scale"  # the part that has no rows
MXFP4 = Quantization(group_size=32, bits=4, mode="mxfp4")
MXFP8 = Quantization(group_size=32, bits=8, mode="mxfp8")
MXFP4_BLOCK_BYTES = 16
E8M0_BIAS = 127
DECODED = "decoded to float32"  # how remarks of it begin
FLOATS = {"F32", "BF16", "F16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One weight, bias or vector.

    Attributes:
        parts: "weight" alone; when it is packed with "scales" and, depending on the packing, "biases" or
            "global_scale".
        packing: How it is packed; None for a plain array.
        remark: What the user should know of its packing; mostly empty.
    """

    parts: Mapping[str, Rows]
    packing: Quantization | None = None
    remark: str = ""

    @property
    def weight(self) -> Rows:
        """The plain array, or the codes."""
        return self.parts["weight"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in weights, whatever the packing."""
        shape = self.weight.shape
        return shape if self.packing is None else (*shape[:-1], shape[-1] * 32 // self.packing.bits)

    def map(self, change: Callable[[Rows], Rows]) -> "Tensor":
        """Apply to each part a change that keeps every row whole, and in its matrix."""
        changed = {part: change(rows) for part, rows in self.parts.items() if part != GLOBAL_SCALE}
        return replace(self, parts={**self.parts, **changed})


def plain(array: Rows) -> Tensor:
    """Wrap a plain array."""
    return Tensor(parts={"weight": array})


def decoded(weight: Rows, reason: str) -> Tensor:
    """Wrap the float32 values of a matrix that could not stay packed."""
    return Tensor(parts={"weight": weight}, remark=f"{DECODED}, because {reason}")


def decode(tensor: Tensor, reason: str) -> Tensor:
    """Return the tensor as float32 if it is packed; `reason` says why."""
    how = tensor.packing
    if how is None:
        return tensor

    def values(*arrays: mx.array) -> mx.array:
        return unpack(dict(zip(tensor.parts, arrays, strict=True)), how)

    return decoded(computed(list(tensor.parts.values()), values, "F32", tensor.shape[-1]), reason)


def combine(tensors: Sequence[Tensor], change: Callable[[list[Rows]], Rows]) -> Tensor:
    """Join tensors part by part; if they are not all packed alike, decode them first."""
    packings = {tensor.packing for tensor in tensors}
    if len(packings) > 1 or any(how and how.global_scale for how in packings):
        tensors = [decode(tensor, "its parts are packed in different ways") for tensor in tensors]
    parts = {part: change([tensor.parts[part] for tensor in tensors]) for part in tensors[0].parts}
    remark = next((tensor.remark for tensor in tensors if tensor.remark), "")
    return Tensor(parts=parts, packing=tensors[0].packing, remark=remark)


def transposed(tensor: Tensor) -> Tensor:
    """Swap the last two axes of [stack, out, in].

    MXFP8 stays packed, with the same bits, where tiles of 32 x 32 weights share their scale, as they do after
    FP8 blocks. Everything else is decoded.
    """
    tiles = _tiles(tensor.parts["scales"]) if tensor.packing == MXFP8 else None
    if tiles is None:
        whole = decode(tensor, "a packed matrix cannot be transposed")
        return whole.map(lambda rows: rows.map(lambda array: array.swapaxes(-1, -2)))
    group = MXFP8.group_size
    stack, out, inputs = tensor.shape
    info = TensorInfo(dtype="U8", shape=(stack, inputs, out // group))
    scales = Rows(
        info=info, read=lambda begin, end: np.repeat(tiles[begin:end].swapaxes(1, 2), group, axis=1)
    )
    codes = tensor.weight.map(
        lambda array: np.ascontiguousarray(array.view("u1").swapaxes(1, 2)).view("<u4"), "U32"
    )
    return Tensor(parts={"weight": codes, "scales": scales}, packing=MXFP8)


def _tiles(scales: Rows) -> Array | None:
    """Return a scale for every 32 x 32 weights, [stack, out / 32, in / 32], or None if some have several."""
    stack, out, groups = scales.shape
    if out % MXFP8.group_size:
        return None
    tiles = scales.all().reshape(stack, -1, MXFP8.group_size, groups)
    return tiles[:, :, 0] if np.array_equal(tiles, np.broadcast_to(tiles[:, :, :1], tiles.shape)) else None


def quantize(tensor: Tensor, how: Quantization, scale_dtype: str) -> Tensor:
    """Pack a matrix with loss, from its float32 values; one that is packed, only if that makes it smaller.

    Args:
        tensor: The matrix, or a stack of them.
        how: The packing; affine groups may shrink to 32 where the rows ask for it.
        scale_dtype: Type of affine scales (docs/decisions/0006).
    """
    if tensor.packing and tensor.packing.bits_per_weight <= how.bits_per_weight:
        return tensor
    *rows, width = tensor.shape
    fitting = suitable(how, width)
    if fitting is None:
        remark = f"not packed, because its rows are not whole groups of {how.group_size}"
        return replace(tensor, remark=remark)
    weight = decode(tensor, "").weight
    words, groups = width * fitting.bits // 32, width // fitting.group_size
    kinds: dict[str, tuple[str, tuple[int, ...]]]
    kinds = {"weight": ("U32", (*rows, words)), "scales": ("U8", (*rows, groups))}
    if fitting.mode == "affine":
        kinds |= dict.fromkeys(("scales", "biases"), (scale_dtype, (*rows, groups)))
    if fitting.global_scale and len(rows) > 1:
        kinds[GLOBAL_SCALE] = ("F32", tuple(rows[:-1]))
    infos = {part: TensorInfo(dtype=dtype, shape=shape) for part, (dtype, shape) in kinds.items()}
    largest = _largest(weight) if fitting.global_scale and len(rows) == 1 else None

    def make(values: Array) -> list[Array]:
        parts = pack(
            to_mlx(values, weight.dtype),
            fitting,
            scale_type=DTYPES[scale_dtype],
            largest=to_mlx(largest.all(), "F32") if largest else None,
        )
        return [from_mlx(parts[part], info.dtype) for part, info in infos.items()]

    parts = several(weight, make, infos) | ({GLOBAL_SCALE: largest} if largest else {})
    return Tensor(parts=parts, packing=fitting)


def _largest(weight: Rows) -> Rows:
    """Return the largest magnitude of a matrix, a scalar; the matrix is read for it once."""

    @cache
    def find() -> Array:
        pieces = (to_mlx(weight.read(begin, end), weight.dtype) for begin, end in weight.slices())
        return np.stack([from_mlx(global_scales(piece), "F32") for piece in pieces]).max()

    return Rows(info=TensorInfo(dtype="F32", shape=()), read=lambda _begin, _end: find())


def packed(parts: Mapping[str, Rows], how: Quantization) -> Tensor:
    """Wrap arrays that MLX packed.

    Raises:
        ValueError: Codes and scales do not describe the same number of inputs.
    """
    codes, *scales = (rows for part, rows in parts.items() if part != GLOBAL_SCALE)
    largest = parts.get(GLOBAL_SCALE)
    groups = (*codes.shape[:-1], codes.shape[-1] * 32 // how.bits // how.group_size)
    dtypes = FLOATS if how.mode == "affine" else {"U8"}
    expected = 2 if how.mode == "affine" else 1
    fits = all(array.shape == groups and array.dtype in dtypes for array in scales)
    if how.global_scale:
        fits = fits and largest is not None and largest.shape == codes.shape[:-2] and largest.dtype == "F32"
    if codes.dtype != "U32" or len(scales) != expected or not fits:
        shapes = " and ".join(f"{part} {list(array.shape)}" for part, array in parts.items())
        raise ValueError(f"{shapes} are not {how.bits}-bit {how.mode} in groups of {how.group_size}")
    return Tensor(parts=parts, packing=how)


def mxfp4_blocks(blocks: Rows, scales: Rows) -> Tensor:
    """Reinterpret MXFP4 (OCP Microscaling 1.0): blocks [..., out, in / 32, 16], scales [..., out, in / 32].

    Byte b of a block holds input 2b in its low half and 2b + 1 in its high half: MLX's order.

    Raises:
        ValueError: The shapes do not belong together.
    """
    if blocks.shape != (*scales.shape, MXFP4_BLOCK_BYTES) or not blocks.dtype == scales.dtype == "U8":
        raise ValueError(
            f"blocks {list(blocks.shape)} and scales {list(scales.shape)} do not belong together"
        )
    words = (scales.shape[-1] * MXFP4_BLOCK_BYTES // 4,)
    codes = blocks.map(lambda array: array.view("<u4").reshape(*array.shape[:-2], *words), "U32")
    return Tensor(parts={"weight": codes, "scales": scales}, packing=MXFP4)


def _spread(scales: Rows, repeats: tuple[int, int], shape: Sequence[int]) -> Rows:
    """Repeat scales [..., rows, columns] over their blocks, the last of which may be cut by `shape`."""

    def columns(array: Array) -> Array:
        return np.repeat(array, repeats[1], axis=-1)[..., : shape[-1]]

    def matrix(begin: int, end: int) -> Array:
        first = begin // repeats[0]
        rows = np.repeat(scales.read(first, -(-end // repeats[0])), repeats[0], axis=0)
        return columns(rows[begin - first * repeats[0] : end - first * repeats[0]])

    if len(shape) == 2:
        return Rows(info=TensorInfo(dtype=scales.dtype, shape=tuple(shape)), read=matrix)
    return scales.map(lambda array: columns(np.repeat(array, repeats[0], axis=-2)[..., : shape[-2], :]))


def e8m0_values(codes: Array) -> Array:
    """Return the powers of two that E8M0 codes stand for."""
    return np.ldexp(np.float32(1), codes.astype(np.int32) - E8M0_BIAS)


def e8m0_codes(scales: Array) -> Array:
    """Return the E8M0 codes of scales, NAN_SCALE for what is not a power of two in range."""
    mantissa, exponent = np.frexp(scales)
    codes = exponent - 1 + E8M0_BIAS
    exact = (mantissa == 0.5) & (codes >= 0) & (codes < NAN_SCALE)
    return np.where(exact, codes, NAN_SCALE).astype(np.uint8)


def fp8_blocks(codes: Rows, scales: Rows, block: tuple[int, int]) -> Tensor:
    """Turn E4M3 codes [..., out, in] with a scale per block (arXiv 2412.19437, section 3.3) into MXFP8.

    Possible when every scale is a power of two and groups of 32 inputs lie within a block; the codes then
    stay as they are and a block's scale is repeated for its groups. Otherwise W = E4M3(code) * scale, in
    float32.

    Raises:
        ValueError: The shapes do not belong together.
    """
    *rows, out, inputs = codes.shape
    blocks = (-(-out // block[0]), -(-inputs // block[1]))
    if scales.shape != (*rows, *blocks) or scales.dtype not in FLOATS:
        raise ValueError(
            f"scales {list(scales.shape)} do not cover {list(codes.shape)} in blocks of {list(block)}"
        )
    group = MXFP8.group_size
    scales = cast(scales, "F32")
    whole_groups = inputs % group == 0 and block[1] % group == 0
    powers = bool((e8m0_codes(scales.all()) != NAN_SCALE).all())
    if powers and whole_groups:
        exponents = scales.map(e8m0_codes, "U8")
        spread = _spread(exponents, (block[0], block[1] // group), (*codes.shape[:-1], inputs // group))
        words = codes.map(lambda array: array.view("<u4"), "U32")
        return Tensor(parts={"weight": words, "scales": spread}, packing=MXFP8)
    weight = computed(
        [codes, _spread(scales, block, codes.shape)],
        lambda codes, scales: mx.from_fp8(codes, dtype=mx.float32) * scales,
        "F32",
        inputs,
    )
    return decoded(
        weight, "its rows are not whole groups of 32" if powers else "its FP8 scales are not powers of two"
    )
