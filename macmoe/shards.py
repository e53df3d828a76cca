"""The safetensors files of one folder: headers are checked before any allocation, tensors are read lazily.

Layout of a file: 8 bytes little-endian length, a JSON header {name: {dtype, shape, data_offsets}}, then the
tensors' bytes. A header that lies (offsets that overlap, sizes that do not fit the shape, a length beyond the
file) is refused; so is an index that leads out of the folder.
"""

import json
import logging
import math
import os
import re
import struct
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from macmoe.config import load_json
from macmoe.errors import CheckpointError
from macmoe.files import refuse_pointer

logger = logging.getLogger(__name__)

INDEX = "model.safetensors.index.json"
SINGLE = (
    "model.safetensors"  # goes before an index that does not name it, as in transformers, if it holds as much
)
# Bytes per element of the types that MLX reads; it gives the two FP8 types as uint8.
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
}
MAX_HEADER = 100_000_000
MAX_SIZE = 2**31 - 1  # MLX counts an axis in 32 bits
OPEN_FILES = 4  # each open file holds a descriptor, and macOS grants a process 256
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_PLAIN_NAME = re.compile(r"[\w.+-]{1,200}\.safetensors")


def first_five(names: Iterable[str]) -> str:
    """Return "3 (a, b, c)", or the number and the first five with an ellipsis."""
    names = list(names)
    return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a header says of one tensor; dtype in safetensors' spelling."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a name appears twice")
    return data


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _tensor_info(entry: Any) -> tuple[int, int, TensorInfo]:
    """Return begin, end and description of one header entry; ValueError says what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("an entry must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"type {dtype!r} is not supported")
    if not isinstance(shape, list) or not all(_is_count(size) and size <= MAX_SIZE for size in shape):
        raise ValueError("its shape is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise ValueError("its data_offsets are not two positions")
    info = TensorInfo(dtype=dtype, shape=tuple(shape))
    if offsets[1] - offsets[0] != info.nbytes:
        raise ValueError(f"{offsets[1] - offsets[0]} bytes do not hold {dtype} {shape}")
    return offsets[0], offsets[1], info


def _read_header_bytes(path: Path) -> tuple[bytes, int]:
    """Return the header's JSON text and the number of bytes after it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"the header would be {length} bytes long in a file of {size}")
        return file.read(length), size - 8 - length


def _parse_header(text: bytes, data_size: int) -> dict[str, TensorInfo]:
    header = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    header.pop("__metadata__", None)
    entries = []
    for name, entry in header.items():
        try:
            entries.append((*_tensor_info(entry), name))
        except ValueError as error:
            raise ValueError(f"tensor '{name}': {error}") from None
    position = 0
    for begin, end, _, name in sorted(entries, key=lambda entry: entry[:2]):
        if begin != position:
            raise ValueError(f"tensor '{name}' begins at byte {begin}, not at {position} (overlap or gap)")
        position = end
    if position != data_size:
        raise ValueError(f"the header describes {position} bytes of data and the file holds {data_size}")
    return {name: info for _, _, info, name in sorted(entries, key=lambda entry: entry[:2])}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one file; tensors in the order of their bytes.

    Raises:
        CheckpointError: The file is truncated, a pointer of Git LFS, or its header is not consistent with
            itself or with the file.
    """
    refuse_pointer(path)
    try:
        return _parse_header(*_read_header_bytes(path))
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file: {error}; download it again") from None


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a shard that really lies in the folder; a hub cache links to its own blobs."""
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if not _PLAIN_NAME.fullmatch(name):
        raise CheckpointError(f"{folder / INDEX}: {name!r} is no safetensors file of this folder")
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):
        raise CheckpointError(f"{folder}: shard {name} is missing; download it again") from None
    if not path.is_relative_to(root):
        raise CheckpointError(f"{folder / name}: this link leads out of the folder; put the file there")
    return path


def _no_weights(folder: Path) -> CheckpointError:
    if not folder.is_dir():
        return CheckpointError(f"{folder}: no such folder")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return CheckpointError(
            f"{folder}: the weights are pickles ({pickles[0]}), which can run code when they are opened; "
            "get the safetensors form of this model"
        )
    return CheckpointError(f"{folder}: no model*.safetensors file here")


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the files that may hold a model; macOS leaves others that begin with a dot."""
    names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    usual = [name for name in names if name.startswith("model")]
    return usual or [name for name in names if not name.startswith("adapter")]


def _chosen(folder: Path, index: dict[str, str] | None) -> tuple[list[str], bool]:
    """Return the files to read, and whether the index has a say: one left from an earlier save has none."""
    found = _weight_files(folder)
    if index is None:
        return found, False
    named = sorted(set(index.values()))
    if SINGLE in found and SINGLE not in named:
        if not set(named) <= set(found) or index.keys() <= read_header(_inside(folder, SINGLE)).keys():
            return [SINGLE], False
        logger.warning("%s: is not named by the index beside it, and is not read", folder / SINGLE)
    if found and not set(named) & set(found):
        return found, False
    return named, named != [SINGLE]


def _close(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return tensor name -> file name, or None where there is no index."""
    path = folder / INDEX
    if not path.exists():
        return None
    where = load_json(path).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"{path}: no weight_map from tensor names to file names; download it again")
    return where


class Shards:
    """The tensors of one folder.

    Attributes:
        folder: The folder.
        tensors: What the headers say, by tensor name, in the order of the files.
        files: The paths of the safetensors files, by file name.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder with an index, or with model*.safetensors files.

        An index that names other files than there are was left from an earlier save; a warning says that it
        is not used.

        Raises:
            CheckpointError: No safetensors files, a damaged one, one missing or outside, or an index that
            names tensors that no file holds.
        """
        self.folder = Path(folder)
        index = _read_index(self.folder)
        names, indexed = _chosen(self.folder, index)
        self.files = {name: _inside(self.folder, name) for name in names}
        if not self.files:
            raise _no_weights(self.folder)
        self.tensors: dict[str, TensorInfo] = {}
        self._file: dict[str, str] = {}
        self._begin: dict[str, int] = {}
        for name, path in self.files.items():
            self._add(name, read_header(path))
        if index is not None:
            self._compare(index, indexed=indexed)
        self._open: dict[str, dict[str, mx.array]] = {}
        self._descriptors: dict[Path, int] = {}
        weakref.finalize(self, _close, self._descriptors)

    def _add(self, file: str, header: dict[str, TensorInfo]) -> None:
        twice = [name for name in header if name in self.tensors]
        if twice:
            raise CheckpointError(
                f"{self.folder / file}: {first_five(twice)} tensors are also in {self._file[twice[0]]}; "
                "which of them is right cannot be known"
            )
        self.tensors |= header
        self._file |= dict.fromkeys(header, file)
        position = self.files[file].stat().st_size - sum(info.nbytes for info in header.values())
        for name, info in header.items():
            self._begin[name] = position
            position += info.nbytes

    def _compare(self, index: dict[str, str], *, indexed: bool) -> None:
        """Compare an index with the headers, which say what the files really hold."""
        missing = sorted(index.keys() - self._file.keys())
        if missing and indexed:
            raise CheckpointError(
                f"{self.folder / INDEX}: the index and the files disagree about {first_five(missing)} "
                "tensors that no file holds; download the folder again, or remove the index"
            )
        if index != self._file:
            logger.warning(
                "%s: does not describe the files beside it, and is not used; the weights are those of %s",
                self.folder / INDEX,
                first_five(self.files),
            )

    def read(self, name: str) -> mx.array:
        """Return one tensor, not yet evaluated.

        The array is handed out, not kept: memory is free again as soon as the caller lets go of it.
        """
        file = self._file[name]
        arrays = self._open.pop(file, {})
        if name not in arrays:
            loaded = mx.load(str(self.files[file]), format="safetensors")
            assert isinstance(loaded, dict)
            arrays = loaded
        self._open[file] = arrays
        if len(self._open) > OPEN_FILES:
            del self._open[next(iter(self._open))]
        return arrays.pop(name)

    def read_bytes(self, name: str, begin: int, end: int) -> NDArray[np.uint8]:
        """Return bytes [begin, end) of a tensor's data.

        Raises:
            CheckpointError: The file cannot be read, or became shorter.
        """
        path = self.files[self._file[name]]
        data = np.empty(end - begin, np.uint8)
        rest = data.data
        try:
            file = self._descriptor(path)
            os.lseek(file, self._begin[name] + begin, os.SEEK_SET)
            while rest:
                count = os.readv(file, [rest])
                if not count:
                    raise OSError(None, "it became shorter meanwhile")
                rest = rest[count:]
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        return data

    def _descriptor(self, path: Path) -> int:
        """Return an open file, the one that was used longest ago closed for it if there are too many."""
        found = self._descriptors.pop(path, None)
        if found is None:
            found = os.open(path, os.O_RDONLY)
        self._descriptors[path] = found
        if len(self._descriptors) > OPEN_FILES:
            os.close(self._descriptors.pop(next(iter(self._descriptors))))
        return found

    def read_all(self) -> Iterator[tuple[str, mx.array]]:
        """Yield every tensor in the order of the files, not yet evaluated."""
        for name in self.tensors:
            yield name, self.read(name)
