"""Strict reading of config.json: every key is used, has the expected value, is bookkeeping, or is an error.

Two spellings exist: the hub's (`rope_theta` + `rope_scaling`, `torch_dtype`) and that of transformers 5
(`rope_parameters`, `dtype`). Both are accepted. Architecture values have no defaults: a missing key is an
error, never a different model.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macmoe.config_keys import is_empty
from macmoe.config_reader import ConfigReader
from macmoe.errors import ConfigError
from macmoe.files import refuse_pointer
from macmoe.quantization_methods import BESIDE, unsupported, unsupported_beside


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: The file is missing, unreadable, a pointer of Git LFS, or not a JSON object.
    """
    refuse_pointer(path, ConfigError)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
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
    """Read the config.json of a model folder.

    Raises:
        ConfigError: The file is missing or invalid, or one beside it says that another method quantized the
            weights.
    """
    path = Path(folder) / "config.json"
    data = load_json(path)
    refuse_quantization(data, str(path))
    for name in BESIDE if is_empty(data.get("quantization")) else ():
        beside = path.with_name(name)
        if beside.is_file() and (method := unsupported_beside(name, load_json(beside))):
            raise _quantized(str(beside), method)
    return data


def _quantized(file: str, method: str) -> ConfigError:
    return ConfigError(
        f"{file}: the weights are quantized with {method}, which is not supported; get the original model "
        "(or one in FP8 blocks, MXFP4, or mlx-lm's formats)"
    )


def refuse_quantization(data: Mapping[str, Any], file: str) -> None:
    """Refuse weights that were quantized in a way that cannot be read, before anything else is said.

    Raises:
        ConfigError: They are; the message names the method.
    """
    own = data.get("quantization")
    if isinstance(own, Mapping) and "quant_algo" in own and (method := unsupported(own)):
        raise _quantized(file, method)
    for key in ("quantization_config", "compression_config"):
        settings = data.get(key)
        copied = isinstance(own, Mapping) and isinstance(settings, Mapping) and "quant_method" not in settings
        if not copied and (method := unsupported(settings)):
            raise _quantized(file, method)


def nearest(word: str, known: Mapping[str, Any] | set[str] | list[str]) -> str:
    """Return "; did you mean 'x'?" for the known word closest to `word`, else an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def model_reader(data: Mapping[str, Any], file: str) -> ConfigReader:
    """Return a reader of a config.json, in which bookkeeping is known and whose weights can be read.

    Raises:
        ConfigError: Another method quantized the weights, or the model ends in another head.
    """
    refuse_quantization(data, file)
    _check_head(data.get("architectures"), file)
    reader = ConfigReader(data, file)
    reader.ignore_bookkeeping()
    return reader


def _check_head(names: Any, file: str) -> None:
    """Refuse classifiers, reward models, drafts, ...: what they compute is not the next token."""
    heads = [re.sub(r".*?For", "", name) for name in names or () if isinstance(name, str) and "For" in name]
    if heads and "CausalLM" not in heads:
        raise ConfigError(
            f"{file}: architectures is {names!r}; its output is not the next token, which is all that macmoe "
            "computes (...ForCausalLM)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnConfig:
    """Parameters of YaRN (arXiv 2309.00071), under the names of config.json.

    `attention_factor` is the whole factor of cos and sin, `attn_factor` multiplies the one that YaRN has by
    itself (vLLM's key, which DeepSeek-R1-0528-Qwen3-8B uses to undo it).
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None
    attn_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: base and, for stretched contexts, YaRN."""

    theta: float
    yarn: YarnConfig | None

    def longest(self, max_position: int) -> int:
        """Return the longest context: YaRN switched on by hand leaves max_position_embeddings behind."""
        if self.yarn is None:
            return max_position
        return max(max_position, int(self.yarn.factor * self.yarn.original_max_position_embeddings))


def _read_yarn(reader: ConfigReader, max_position: int) -> YarnConfig:
    original = reader.size("original_max_position_embeddings", max_position)
    reader.expect("extrapolation_factor", 1.0, "fast rotations stay as they are")
    reader.expect("apply_yarn_scaling", True, "cos and sin are scaled as YaRN says")
    yarn = YarnConfig(
        factor=reader.take("factor", float),
        original_max_position_embeddings=original,
        beta_fast=reader.take("beta_fast", float, 32.0),
        beta_slow=reader.take("beta_slow", float, 1.0),
        truncate=reader.take("truncate", bool, True),
        attention_factor=reader.take("attention_factor", float, None),
        mscale=reader.take("mscale", float, None),
        mscale_all_dim=reader.take("mscale_all_dim", float, None),
        attn_factor=reader.take("attn_factor", float, 1.0),
    )
    if yarn.attention_factor is not None and yarn.attn_factor != 1:
        raise ConfigError(
            f"{reader.file}: attention_factor is the whole factor and attn_factor a part of it; keep one"
        )
    return yarn


def _rope_object(reader: ConfigReader) -> dict[str, Any]:
    """Join the objects of both spellings; one for each type of layer has to be the same for all."""
    old: dict[str, Any] = reader.take("rope_scaling", dict, {})
    new: dict[str, Any] = reader.take("rope_parameters", dict, {})
    layers = [value for value in new.values() if isinstance(value, dict)]
    if layers and len(layers) == len(new):
        if any(each != layers[0] for each in layers):
            raise ConfigError(f"{reader.file}: rope_parameters differ between types of layers")
        new = layers[0]
    for key in old.keys() & new.keys():
        if old[key] != new[key]:
            raise ConfigError(
                f"{reader.file}: rope_scaling and rope_parameters mean the same and disagree; keep one"
            )
    return old | new


def read_rope(
    reader: ConfigReader, max_position: int, default: Mapping[str, Any] | None = None
) -> RopeConfig:
    """Read `rope_theta` + `rope_scaling` (hub) or `rope_parameters` (transformers 5).

    Args:
        reader: Of config.json.
        max_position: Its max_position_embeddings.
        default: Stands for an object that is not there.

    Raises:
        ConfigError: No base frequency, an unknown rope type, or an unknown key inside the object.
    """
    inner = reader.inside("rope_scaling", _rope_object(reader) or default or {})
    theta = inner.take("rope_theta", float, reader.take("rope_theta", float, None))
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


ENTRY = ("group_size", "bits", "mode", "global_scale")
IGNORED = {"quant_method": "MLX's", "linear_class": "names a class of another library"}


def _read_entry(data: Mapping[str, Any], file: str) -> Quantization:
    reader = ConfigReader(data, file)
    entry = Quantization(
        group_size=reader.take("group_size", int),
        bits=reader.take("bits", int),
        mode=reader.take("mode", str, "affine"),
        global_scale=reader.take("global_scale", bool, False),
    )
    reader.ignore(IGNORED)
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
    if is_empty(table):
        return None, {}
    where = f"{file}: quantization"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r} where an object is needed")
    paths = {
        key: value for key, value in table.items() if key not in ENTRY and isinstance(value, dict | bool)
    }
    rest = {key: value for key, value in table.items() if key not in paths}
    top = _read_entry(rest, where) if rest else None
    return top, {path: _read_path(value, top, f"{where}: {path}") for path, value in paths.items()}


def _read_path(value: dict[str, Any] | bool, top: Quantization | None, file: str) -> Quantization | None:
    """Read the entry of one matrix: mlx-lm writes true for "as all others" and false for "not at all"."""
    if value is True:
        if top is None:
            raise ConfigError(f"{file} is true, and there is no packing that holds for all matrices")
        return top
    return _read_entry(value, file) if value else None
