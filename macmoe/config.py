"""Strict reading of config.json: every key is used, or listed with a reason, or an error.

Two spellings exist: the hub's (`rope_theta` + `rope_scaling`, `torch_dtype`) and that of transformers 5
(`rope_parameters`, `dtype`). Both are accepted. Architecture values have no defaults: a missing key is an
error, never a different model.
"""

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from macmoe.errors import ConfigError
from macmoe.files import refuse_pointer

T = TypeVar("T")
D = TypeVar("D")

_REQUIRED: Any = object()
LARGEST = sys.float_info.max

# Keys that every family's file may hold and that do not change what the model computes.
COMMON_IGNORED = {
    "architectures": "class names of another library",
    "attention_dropout": "training only",
    "auto_map": "remote code, never executed",
    "bos_token_id": "read from generation_config.json and the tokenizer",
    "dtype": "the tensors say their own type",
    "eos_token_id": "read from generation_config.json and the tokenizer",
    "initializer_range": "training only",
    "model_type": "chooses the family",
    "output_router_logits": "training only",
    "pad_token_id": "read from the tokenizer",
    "quantization": "read by read_quantization",
    "quantization_config": "read by the converters",
    "router_aux_loss_coef": "training only",
    "torch_dtype": "the tensors say their own type",
    "transformers_version": "information only",
    "use_cache": "a run-time choice",
}


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: The file is missing, unreadable, a pointer of Git LFS, or not a JSON object.
    """
    refuse_pointer(path, ConfigError)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; a model folder needs it") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno} ({error.msg})"
        raise ConfigError(f"{path}: invalid JSON at {where}; download the file again") from None
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, endless numbers, endless nesting
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds a JSON {type(data).__name__} where an object is needed")
    return data


def load_config(folder: Path) -> dict[str, Any]:
    """Read the config.json of a model folder."""
    return load_json(Path(folder) / "config.json")


def nearest(word: str, known: Mapping[str, Any] | set[str] | list[str]) -> str:
    """Return "; did you mean 'x'?" for the known word closest to `word`, else an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def _fits(value: Any, kind: type) -> bool:
    if kind is float:  # JSON as Python reads it has NaN and Infinity, too
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


class ConfigReader:
    """Hands out the keys of one JSON object and finds, at the end, those that nobody asked for.

    Args:
        data: The object.
        file: What to call it in errors, for example "/models/x/config.json".
    """

    def __init__(self, data: Mapping[str, Any], file: str) -> None:
        self.data = data
        self.file = file
        self._known: set[str] = set()

    def _find(self, names: tuple[str, ...]) -> str | None:
        """Return the spelling in use; two spellings that disagree are an error."""
        self._known.update(names)
        present = [name for name in names if self.data.get(name) is not None]
        if len({json.dumps(self.data[name], sort_keys=True) for name in present}) > 1:
            raise ConfigError(f"{self.file}: {' and '.join(present)} mean the same and disagree; keep one")
        return present[0] if present else None

    @overload
    def take(self, key: str, kind: type[T], *, aliases: tuple[str, ...] = ()) -> T: ...

    @overload
    def take(self, key: str, kind: type[T], default: D, *, aliases: tuple[str, ...] = ()) -> T | D: ...

    def take(self, key: str, kind: type, default: Any = _REQUIRED, *, aliases: tuple[str, ...] = ()) -> Any:
        """Return the value of `key` (or of an alias of it), checked to be a `kind`; null counts as absent.

        Raises:
            ConfigError: The key is absent and has no default, or its value has another type.
        """
        found = self._find((key, *aliases))
        if found is None:
            if default is not _REQUIRED:
                return default
            unused = set(self.data) - self._known
            raise ConfigError(f"{self.file}: key '{key}' is missing{nearest(key, unused)}")
        value = self.data[found]
        if not _fits(value, kind):
            raise ConfigError(f"{self.file}: key '{found}' is {value!r} where {kind.__name__} is needed")
        return float(value) if kind is float else value

    def size(
        self, key: str, default: Any = _REQUIRED, *, least: int = 1, aliases: tuple[str, ...] = ()
    ) -> Any:
        """Return the value of a key that counts something: an integer, or the default.

        Raises:
            ConfigError: As `take`, and where it is less than `least`.
        """
        value = self.take(key, int, default, aliases=aliases)
        if value is not None and value < least:
            raise ConfigError(f"{self.file}: key '{key}' is {value}; it has to be at least {least}")
        return value

    def expect(self, key: str, value: Any, why: str) -> None:
        """Insist that `key` is absent or has the one supported value."""
        self._known.add(key)
        if self.data.get(key) is not None and self.data[key] != value:
            raise ConfigError(
                f"{self.file}: key '{key}' is {self.data[key]!r}; only {value!r} is supported: {why}"
            )

    def ignore(self, reasons: Mapping[str, str]) -> None:
        """Accept these keys without using them; each has its reason."""
        self._known.update(reasons)

    def finish(self) -> None:
        """Raise ConfigError if any key was neither taken nor ignored."""
        for key in self.data:
            if key not in self._known:
                raise ConfigError(
                    f"{self.file}: unknown key '{key}'{nearest(key, self._known)}; "
                    "ignoring it could silently change what the model computes"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnConfig:
    """Parameters of YaRN (arXiv 2309.00071), under the names of config.json."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: base and, for stretched contexts, YaRN."""

    theta: float
    yarn: YarnConfig | None


def _read_yarn(reader: ConfigReader, max_position: int) -> YarnConfig:
    original = reader.size("original_max_position_embeddings", max_position)
    return YarnConfig(
        factor=reader.take("factor", float),
        original_max_position_embeddings=original,
        beta_fast=reader.take("beta_fast", float, 32.0),
        beta_slow=reader.take("beta_slow", float, 1.0),
        truncate=reader.take("truncate", bool, True),
        attention_factor=reader.take("attention_factor", float, None),
        mscale=reader.take("mscale", float, None),
        mscale_all_dim=reader.take("mscale_all_dim", float, None),
    )


def read_rope(reader: ConfigReader, max_position: int) -> RopeConfig:
    """Read `rope_theta` + `rope_scaling` (hub) or `rope_parameters` (transformers 5).

    Raises:
        ConfigError: No base frequency, an unknown rope type, or an unknown key inside the object.
    """
    scaling = reader.take("rope_scaling", dict, None, aliases=("rope_parameters",))
    theta = reader.take("rope_theta", float, None)
    inner = ConfigReader(scaling or {}, f"{reader.file}: rope_scaling")
    theta = inner.take("rope_theta", float, theta)
    if theta is None:
        raise ConfigError(f"{reader.file}: key 'rope_theta' is missing (also inside rope_parameters)")
    kind = inner.take("rope_type", str, "default", aliases=("type",))
    inner.expect("partial_rotary_factor", 1.0, "these families rotate every dimension of the rotary part")
    if kind not in ("default", "yarn"):
        raise ConfigError(
            f"{inner.file}: unknown rope type {kind!r} (known: 'default', 'yarn'); positions would be wrong"
        )
    yarn = _read_yarn(inner, max_position) if kind == "yarn" else None
    inner.finish()
    return RopeConfig(theta=theta, yarn=yarn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How one matrix is packed: MLX's group size, bits and mode.

    Attributes:
        group_size: Inputs that share a scale.
        bits: Bits of a code.
        mode: "affine", "mxfp4", "mxfp8" or "nvfp4".
        global_scale: For nvfp4: a float32 per matrix spreads its weights over the range of the scales.
    """

    group_size: int
    bits: int
    mode: str
    global_scale: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Bits of a code and its share of the group's scales: two of 16 bits (affine), or one byte."""
        return self.bits + (32 if self.mode == "affine" else 8) / self.group_size

    def entry(self) -> dict[str, Any]:
        """Return the entry of config.json."""
        entry = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        return entry | {"global_scale": True} if self.global_scale else entry


# mode -> the (group size, bits) pairs that MLX packs.
QUANTIZATION_MODES = {
    "affine": {(group, bits) for group in (32, 64, 128) for bits in (2, 3, 4, 5, 6, 8)},
    "mxfp4": {(32, 4)},
    "mxfp8": {(32, 8)},
    "nvfp4": {(16, 4)},
}


def _read_entry(data: Mapping[str, Any], file: str) -> Quantization:
    reader = ConfigReader(data, file)
    entry = Quantization(
        group_size=reader.take("group_size", int),
        bits=reader.take("bits", int),
        mode=reader.take("mode", str, "affine"),
        global_scale=reader.take("global_scale", bool, False),
    )
    reader.finish()
    unknown = (entry.group_size, entry.bits) not in QUANTIZATION_MODES.get(entry.mode, ())
    if unknown or (entry.global_scale and entry.mode != "nvfp4"):
        raise ConfigError(
            f"{file}: no such packing: mode {entry.mode!r}, {entry.bits} bits, groups of {entry.group_size}"
        )
    return entry


def read_quantization(
    data: Mapping[str, Any], file: str = "config.json"
) -> tuple[Quantization | None, dict[str, Quantization | None]]:
    """Read the `quantization` key of a macmoe or mlx-lm config.

    Returns:
        The top-level entry, which holds for packed matrices without an entry of their own, and the entries by
        module path (None: that module is not packed). A config without the key gives (None, {}).
    """
    table = data.get("quantization")
    if table is None:
        return None, {}
    where = f"{file}: quantization"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r} where an object is needed")
    top = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not False}
    paths = {
        key: _read_entry(value, f"{where}: {key}") if value else None
        for key, value in table.items()
        if isinstance(value, dict) or value is False
    }
    return (_read_entry(top, where) if top else None), paths
