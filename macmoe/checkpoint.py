"""Weights into models: the macmoe checkpoint folder, and the checks that hold for every source of weights.

A source is whatever has a config, descriptions of its tensors under macmoe's names, and the tensors
themselves: a folder in the macmoe layout (`Checkpoint`), or a conversion on the fly of another layout.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from macmoe.config import Quantization, load_config, load_json, read_quantization
from macmoe.errors import CheckpointError
from macmoe.families import known_config
from macmoe.nn.quantized import pack_modules
from macmoe.shards import Shards, TensorInfo, first_five

logger = logging.getLogger(__name__)

MARKER = "macmoe.json"
FORMAT_VERSION = 1
BATCH_BYTES = 1 << 30  # evaluated together while loading
# Never in less than float32: what reorders a router's scores by small differences, and what scales a matrix.
FLOAT32_ONLY = ("e_score_correction_bias", "global_scale")

# Of the scales that are bytes (E8M0 in MXFP4 and MXFP8, E4M3 in NVFP4), the one that is no number.
NAN_SCALE = 255

DTYPES = {"U8": mx.uint8, "U32": mx.uint32, "F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32}


class WeightSource(Protocol):
    """Weights under macmoe's names, with the config that they belong to."""

    @property
    def folder(self) -> Path:
        """Where they come from."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of a macmoe checkpoint; `quantization` lists every packed matrix."""
        ...

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Types and shapes of all tensors."""
        ...

    def tensors(self) -> Iterator[tuple[str, mx.array]]:
        """Yield all tensors, not yet evaluated."""
        ...


class Checkpoint:
    """A folder in the macmoe layout.

    Attributes:
        folder: The folder.
        config: Its config.json.
        infos: Types and shapes of all tensors, by name.
    """

    def __init__(self, folder: Path, *, allow_unknown_keys: bool = False) -> None:
        """Open the folder and check the headers of its files.

        Raises:
            ConfigError: config.json or macmoe.json is missing or invalid.
            CheckpointError: The weights are missing or damaged, or of a later format.
        """
        self.folder = Path(folder)
        file = str(self.folder / "config.json")
        data = load_config(self.folder)
        self.config = known_config(data, file, allow_unknown_keys=allow_unknown_keys)
        version = load_json(self.folder / MARKER).get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{self.folder / MARKER}: format version {version!r}; this macmoe reads {FORMAT_VERSION}; "
                "update macmoe or convert the model again"
            )
        self._shards = Shards(self.folder)
        self.infos: Mapping[str, TensorInfo] = self._shards.tensors
        check_counts(self.config, len(self.infos), self.folder)

    def tensors(self) -> Iterator[tuple[str, mx.array]]:
        """Yield all tensors in the order of the files, not yet evaluated."""
        return self._shards.read_all()


def is_macmoe_folder(folder: Path) -> bool:
    """Return whether a folder is in the macmoe layout."""
    return (Path(folder) / MARKER).is_file()


def check_counts(config: Mapping[str, Any], tensors: int, where: Path) -> None:
    """Refuse a config with more layers than there are tensors, before a model of that many is built.

    Raises:
        CheckpointError: The config cannot belong to the weights.
    """
    for key in ("num_hidden_layers", "num_nextn_predict_layers"):
        count = config.get(key)
        if isinstance(count, int | float) and count > tensors:
            raise CheckpointError(
                f"{where}: {key} in config.json is {count:,}, and the files hold {tensors:,} tensors; they "
                "do not belong together, so download the folder again"
            )


def parameters_of(model: nn.Module) -> dict[str, mx.array]:
    """Return a model's parameters by name."""
    named: Any = tree_flatten(model.parameters())
    return dict(named)


def packed_paths(config: Mapping[str, Any], file: str) -> dict[str, Quantization]:
    """Return how each packed matrix of a macmoe checkpoint is packed, by module path."""
    return {path: how for path, how in read_quantization(config, file)[1].items() if how is not None}


def is_float(dtype: mx.Dtype) -> bool:
    """Return whether a type is a floating-point type."""
    return mx.issubdtype(dtype, mx.floating)


def suspicious(array: mx.array) -> mx.array:
    """Return a scalar, not yet evaluated: true if weights or scales are not finite, rarely otherwise."""
    if is_float(array.dtype):
        return mx.logical_not(mx.isfinite(array.sum()))
    return (array == NAN_SCALE).any() if array.dtype == mx.uint8 else mx.array(False)


def warn_of_bad_weights(name: str, bad: int, where: Path) -> None:
    """Warn about NaN or infinite weights, if any: they make every answer of the model meaningless."""
    if bad:
        logger.warning("%s: tensor %s holds %d NaN or infinite weights", where, name, bad)


def report(name: str, array: mx.array, where: Path) -> None:
    """Warn if a suspicious array holds weights that are not finite.

    Raises:
        CheckpointError: It holds scales or correction biases that are not: whole groups of weights, or the
            choice of all experts, hang on one of them.
    """
    if name.endswith(FLOAT32_ONLY) or not is_float(array.dtype):
        raise CheckpointError(f"{where}: tensor {name} holds NaN or infinity; download or convert it again")
    warn_of_bad_weights(name, int(mx.logical_not(mx.isfinite(array)).sum()), where)


def _fits(info: TensorInfo, parameter: mx.array) -> bool:
    dtype = DTYPES.get(info.dtype)
    same_class = dtype is not None and is_float(dtype) and is_float(parameter.dtype)
    return info.shape == parameter.shape and (same_class or dtype == parameter.dtype)


def check_fit(parameters: Mapping[str, mx.array], infos: Mapping[str, TensorInfo], where: Path) -> None:
    """Check that tensors and parameters are the same in name, shape and class of type.

    Raises:
        CheckpointError: They are not; the message has counts and the first five names of each kind.
    """
    missing = [name for name in parameters if name not in infos]
    extra = [name for name in infos if name not in parameters]
    wrong = [
        f"{name} {infos[name].dtype} {list(infos[name].shape)} for {list(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in infos and not _fits(infos[name], parameter)
    ]
    kinds = {"missing": missing, "not part of the model": extra, "of another shape or type": wrong}
    problems = "; ".join(f"{kind}: {first_five(names)}" for kind, names in kinds.items() if names)
    if problems:
        raise CheckpointError(
            f"{where}: the weights do not fit config.json: {problems}; convert the model again"
        )


def _cast(name: str, array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    if name.endswith(FLOAT32_ONLY):
        return array.astype(mx.float32)
    return array.astype(dtype) if dtype is not None and is_float(array.dtype) else array


def _assign(model: nn.Module, batch: dict[str, mx.array], where: Path) -> None:
    """Evaluate a batch, look for NaN, put it into the model."""
    suspects = {name: suspicious(array) for name, array in batch.items()}
    mx.eval(batch, suspects)
    for name, suspect in suspects.items():
        if suspect.item():
            report(name, batch[name], where)
    model.load_weights(list(batch.items()), strict=False)


def load_weights(model: nn.Module, source: WeightSource, *, dtype: mx.Dtype | None = None) -> None:
    """Fill a newly built model, its packed matrices as the source's config lists them.

    Args:
        model: The model of `source.config`, unpacked.
        source: An opened checkpoint or conversion.
        dtype: Type for all floating-point tensors (DeepSeek's correction bias stays float32); None keeps
            theirs.

    Raises:
        ConfigError: `quantization` does not fit the model.
        CheckpointError: Tensors are missing, superfluous, or of a wrong shape or type; nothing was read.
    """
    pack_modules(model, packed_paths(source.config, str(source.folder / "config.json")))
    check_fit(parameters_of(model), source.infos, source.folder)
    batch: dict[str, mx.array] = {}
    waiting = 0
    for name, array in source.tensors():
        batch[name] = _cast(name, array, dtype)
        waiting += batch[name].nbytes
        if waiting > BATCH_BYTES:
            _assign(model, batch, source.folder)
            batch, waiting = {}, 0
    _assign(model, batch, source.folder)
