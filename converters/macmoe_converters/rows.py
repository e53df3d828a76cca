"""Arrays that are read a few rows at a time, so that no stack of experts is ever in memory as a whole.

A `Rows` knows its type and shape, and how to read rows [begin, end) of its first axis. Rules combine them
without reading; the writer reads them slice by slice. Bytes are moved with numpy, which has no bfloat16 and
no FP8: those travel as unsigned integers of the same width, and `dtype` says what they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macmoe.checkpoint import DTYPES
from macmoe.shards import Shards, TensorInfo

Array = NDArray[Any]

# How each type travels in numpy.
CARRIERS = {
    "U8": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
}
FILES = 2  # written at the same time, so that two cores hash (docs/decisions/0017)
CHUNK_BYTES = 4 << 20  # read at a time, or one row if that is more (docs/decisions/0013)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """An array on disk, or what becomes of it.

    Attributes:
        info: Type, in safetensors' spelling, and shape.
        read: Returns rows [begin, end), in the type's carrier; a scalar counts as one row.
        joined: The arrays whose bytes, one after the other, are those of this one; mostly none.
        lazy: Returns everything as an array of MLX that is not read before it is computed, where that can be.
    """

    info: TensorInfo
    read: Callable[[int, int], Array]
    joined: Sequence["Rows"] = ()
    lazy: Callable[[], mx.array] | None = None

    @property
    def dtype(self) -> str:
        """The type in safetensors' spelling."""
        return self.info.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.info.shape

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0] if self.shape else 1

    def all(self) -> Array:
        """Read everything."""
        return self.read(0, len(self))

    def array(self) -> mx.array:
        """Read everything into MLX."""
        return self.lazy() if self.lazy else to_mlx(self.all(), self.dtype)

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return CARRIERS[self.dtype].itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.info.nbytes // max(len(self), 1)

    @property
    def slice_rows(self) -> int:
        """Rows of a slice: about CHUNK_BYTES, at least one."""
        return max(1, CHUNK_BYTES // max(self.row_bytes, 1))

    def slices(self) -> Iterator[tuple[int, int]]:
        """Cut the rows into slices: the first row of each, and the one behind its last."""
        step = self.slice_rows
        return ((begin, min(begin + step, len(self))) for begin in range(0, len(self), step))

    def pieces(self) -> Iterator[tuple[int, Callable[[], Array]]]:
        """Cut the bytes into pieces, none joined before it is needed: the size of each, and its reading."""
        for array in self.joined:
            yield from array.pieces()
        if not self.joined:
            for begin, end in self.slices():
                yield (end - begin) * self.row_bytes, partial(self.read, begin, end)

    @property
    def piece_bytes(self) -> int:
        """Size of the largest piece."""
        own = min(self.slice_rows, len(self)) * self.row_bytes
        return max((array.piece_bytes for array in self.joined), default=own)

    def within(self, begin: int, end: int) -> "Rows":
        """Return some of the rows."""
        info = TensorInfo(dtype=self.dtype, shape=(end - begin, *self.shape[1:]))
        return Rows(info=info, read=lambda first, last: self.read(begin + first, begin + last))

    def fold(self, count: int) -> "Rows":
        """Give [count * n, ...] the shape [count, n, ...].

        Raises:
            ValueError: The rows cannot be divided so.
        """
        if not self.shape or not count or self.shape[0] % count:
            raise ValueError(f"{list(self.shape)} cannot be divided by {count}")
        each = self.shape[0] // count
        info = TensorInfo(dtype=self.dtype, shape=(count, each, *self.shape[1:]))
        return Rows(
            info=info,
            read=lambda begin, end: self.read(begin * each, end * each).reshape(-1, *info.shape[1:]),
        )

    def map(self, change: Callable[[Array], Array], dtype: str | None = None) -> "Rows":
        """Apply what leaves every row where it is; see `together`."""
        return together([self], change, dtype)


def stored(shards: Shards, name: str) -> Rows:
    """Return a tensor of a checkpoint.

    Raises:
        ValueError: Its type is none that weights have.
    """
    info = shards.tensors[name]
    if info.dtype not in CARRIERS:
        raise ValueError(f"it is stored as {info.dtype}, which is no type of weights")
    row_bytes = info.nbytes // max(info.shape[0] if info.shape else 1, 1)

    def read(begin: int, end: int) -> Array:
        data = shards.read_bytes(name, begin * row_bytes, end * row_bytes).view(CARRIERS[info.dtype])
        return data.reshape(end - begin, *info.shape[1:]) if info.shape else data.reshape(())

    return Rows(info=info, read=read, lazy=partial(shards.read, name))


def beside(arrays: Sequence[Rows], axis: int) -> Rows:
    """Put the rows of several arrays beside each other, along an axis behind the first.

    Raises:
        ValueError: The arrays do not fit together.
    """
    joined = together(arrays, lambda *some: np.concatenate(some, axis=axis))
    if any(array.lazy is None for array in arrays):
        return joined
    return replace(joined, lazy=lambda: mx.concatenate([array.array() for array in arrays], axis=axis))


def together(arrays: Sequence[Rows], change: Callable[..., Array], dtype: str | None = None) -> Rows:
    """Apply a function to the same rows of several arrays.

    Args:
        arrays: Arrays with equally many rows.
        change: Maps [rows, ...] of each to [rows, ...] of the result, each row from its own. What it does to
            the shape is asked with no rows at all.
        dtype: Type of the result; None: that of the arrays, which must be the same.

    Raises:
        ValueError: The arrays do not fit together, or the function refuses their shapes.
    """
    if len({array.shape[:1] for array in arrays}) != 1 or not arrays[0].shape:
        raise ValueError("these arrays have different numbers of rows")
    if dtype is None and len({array.dtype for array in arrays}) != 1:
        raise ValueError("these arrays have different types")
    nothing = change(*(np.empty((0, *array.shape[1:]), CARRIERS[array.dtype]) for array in arrays))
    info = TensorInfo(dtype=dtype or arrays[0].dtype, shape=(len(arrays[0]), *nothing.shape[1:]))
    return Rows(info=info, read=lambda begin, end: change(*(array.read(begin, end) for array in arrays)))


def stacked(arrays: Sequence[Rows], count: int) -> Rows:
    """Join matrices [rows, in] to [count, rows, in]; each of these has equally many of the matrices.

    Raises:
        ValueError: The matrices cannot be divided so, or differ in type, width or number of rows.
    """
    each = len(arrays) // max(count, 1)
    kinds = {(array.dtype, array.shape[1:]) for array in arrays}
    heights = [
        tuple(array.shape[:1] for array in arrays[i : i + each]) for i in range(0, len(arrays), each or 1)
    ]
    if each * count != len(arrays) or len(kinds) != 1 or len(set(heights)) != 1 or () in heights[0]:
        raise ValueError("these matrices cannot be stacked")
    shape = (count, sum(len(array) for array in arrays[:each]), *arrays[0].shape[1:])

    def read(begin: int, end: int) -> Array:
        if begin == end:
            return np.empty((0, *shape[1:]), CARRIERS[arrays[0].dtype])
        matrices = [array.all() for array in arrays[begin * each : end * each]]
        return np.concatenate(matrices).reshape(end - begin, *shape[1:])

    return Rows(info=TensorInfo(dtype=arrays[0].dtype, shape=shape), read=read, joined=arrays)


def even_then_odd(array: Rows) -> Rows:
    """Reorder the second axis of [count, n, ...]: its even rows, then its odd ones."""
    return array.map(lambda some: np.concatenate([some[:, ::2], some[:, 1::2]], axis=1))


def unstacked(array: Rows, each: int) -> list[Rows]:
    """Take [count, rows, in] apart into matrices [rows / each, in], `each` of them after the other."""
    count, height = array.shape[0], array.shape[1] // each
    info = TensorInfo(dtype=array.dtype, shape=(height, *array.shape[2:]))
    # The matrices of an entry are read one after the other, in each of the files that are written together.
    entry = lru_cache(maxsize=FILES)(lambda i: array.read(i, i + 1)[0])

    def read(i: int, j: int, begin: int, end: int) -> Array:
        return entry(i)[j * height + begin : j * height + end]

    return [Rows(info=info, read=partial(read, i, j)) for i in range(count) for j in range(each)]


def unfolded(array: Rows) -> Rows:
    """Give [count, n, ...] the shape [count * n, ...]."""
    count, each, *rest = array.shape

    def read(begin: int, end: int) -> Array:
        first = begin // each
        rows = array.read(first, -(-end // each)).reshape(-1, *rest)
        return rows[begin - first * each : end - first * each]

    return Rows(info=TensorInfo(dtype=array.dtype, shape=(count * each, *rest)), read=read)


def computed(arrays: Sequence[Rows], change: Callable[..., mx.array], dtype: str, width: int) -> Rows:
    """Apply a function of MLX to the same rows of several arrays, and scalars; it gives `width` columns."""

    def read(begin: int, end: int) -> Array:
        pieces = (array.read(begin, end) if array.shape else array.all() for array in arrays)
        return from_mlx(change(*map(to_mlx, pieces, (array.dtype for array in arrays))), dtype)

    return Rows(info=TensorInfo(dtype=dtype, shape=(*arrays[0].shape[:-1], width)), read=read)


def cast(array: Rows, dtype: str) -> Rows:
    """Convert values to another type."""
    if array.dtype == dtype:
        return array
    return computed([array], lambda values: values.astype(DTYPES[dtype]), dtype, array.shape[-1])


def several(
    array: Rows, change: Callable[[Array], Sequence[Array]], infos: Mapping[str, TensorInfo]
) -> dict[str, Rows]:
    """Compute several arrays from the same rows at once.

    The first one, the largest, is usually read to its end before the others are. What was computed for them
    meanwhile is kept until it is read; what is not there (a conversion was resumed) is computed again.

    Args:
        array: What they are computed from.
        change: Maps rows of `array` to the same rows of each result.
        infos: Names, types and shapes of the results, in the order of `change`.
    """
    names = list(infos)
    kept: dict[tuple[str, int], tuple[int, Array]] = {}  # (name, first row) -> end, rows

    def compute(name: str, begin: int, end: int) -> Array:
        made = dict(zip(names, change(array.read(begin, end)), strict=True))
        if name == names[0]:
            kept.update({(other, begin): (end, made[other]) for other in names[1:]})
        return made[name]

    def read(name: str, begin: int, end: int) -> Array:
        pieces: list[Array] = []
        while begin < end:
            stop, piece = kept.pop((name, begin), None) or (end, compute(name, begin, end))
            if stop > end:
                kept[name, end] = stop, piece[end - begin :]
            pieces.append(piece[: end - begin])
            begin = stop
        return np.concatenate(pieces)

    return {name: Rows(info=info, read=partial(read, name)) for name, info in infos.items()}


def held(array: mx.array, dtype: str) -> Rows:
    """Return an array that is in memory, as another type if need be."""
    whole = from_mlx(array.astype(DTYPES[dtype]), dtype)
    return Rows(info=TensorInfo(dtype=dtype, shape=array.shape), read=lambda begin, end: whole[begin:end])


def to_mlx(array: Array, dtype: str) -> mx.array:
    """Return the values of a numpy array that carries this type."""
    moved = mx.array(np.ascontiguousarray(array).reshape(array.shape))  # numpy gives scalars an axis
    return moved.view(mx.bfloat16) if dtype == "BF16" else moved


def from_mlx(array: mx.array, dtype: str) -> Array:
    """Return the carrier of an array of MLX."""
    whole = mx.contiguous(array)
    return np.array(whole.view(mx.uint16) if dtype == "BF16" else whole).view(CARRIERS[dtype])
