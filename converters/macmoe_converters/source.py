"""A folder to convert: its layout, its config in the hub's spelling, its tensors with their packings.

Several stored tensors can be one weight (codes, scales, biases). Rules see one name: that of the codes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from macmoe.checkpoint import check_counts, is_macmoe_folder
from macmoe.config import ConfigReader, load_config, read_quantization
from macmoe.config_reader import permitted
from macmoe.errors import ConfigError, ConversionError
from macmoe.families import known_config
from macmoe.shards import Shards
from macmoe_converters.names import decoded_names, plain_names
from macmoe_converters.original import hub_config, is_original
from macmoe_converters.packing import FLOATS, Tensor, e8m0_values, fp8_blocks, mxfp4_blocks, packed, plain
from macmoe_converters.rows import Rows, stored

FP8_BLOCK = (128, 128)
MLX_NAMES = (".switch_mlp.", ".embed_q.", ".unembed_out.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How a packed weight is spread over stored tensors: name endings of its codes and of its other parts."""

    codes: str
    parts: Mapping[str, str]
    read: Callable[["Source", str, dict[str, Rows]], Tensor]

    def find(self, name: str, stored: Mapping[str, Any]) -> dict[str, str]:
        """Return part -> stored name if `name` holds codes of this encoding, else nothing."""
        if not name.endswith(self.codes):
            return {}
        stem = name.removesuffix(self.codes)
        found = {part: stem + suffix for part, suffix in self.parts.items() if stem + suffix in stored}
        return {"weight": name, **found} if "scales" in found else {}


def layout_of(folder: Path, config: Mapping[str, Any], names: Mapping[str, Any]) -> str:
    """Return what kind of folder this is: "macmoe", "original", "mlx" or "hub"."""
    if is_macmoe_folder(folder):
        return "macmoe"
    if is_original(config):
        return "original"
    in_mlx = "quantization" in config or any(part in name for part in MLX_NAMES for name in names)
    return "mlx" if in_mlx else "hub"


def fp8_block_size(config: Mapping[str, Any], file: str) -> tuple[int, int]:
    """Return rows and columns of the FP8 blocks.

    Raises:
        ConfigError: `quantization_config` is not an object, or the size is not two numbers.
        ConversionError: The weights are packed in a way that is not supported.
    """
    settings = ConfigReader(config, file).take("quantization_config", dict, {})
    method = settings.get("quant_method")
    if method not in (None, "fp8", "mxfp4"):
        raise ConversionError(
            f"{file}: weights quantized with {method!r} cannot be converted; get the original model"
        )
    size = ConfigReader(settings, f"{file}: quantization_config").take("weight_block_size", list, FP8_BLOCK)
    if len(size) != 2 or not all(type(length) is int and length > 0 for length in size):
        raise ConfigError(f"{file}: weight_block_size is {size!r} where two lengths are needed")
    return size[0], size[1]


class Source:
    """An opened folder.

    Attributes:
        folder: The folder.
        config: Its config.json in the hub's spelling.
        layout: What kind of folder it is.
        names: The tensors as rules see them, in the order of the files.
        stored_names: The names of all tensors in the files, by their names in rules.
        files: Its safetensors files.
        companions: The folders that may hold its tokenizer.
    """

    def __init__(self, folder: Path, *, allow_unknown_keys: bool = False) -> None:
        """Open a folder and check the headers of its files.

        Args:
            folder: The folder.
            allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.

        Raises:
            ConfigError: config.json is missing or invalid.
            CheckpointError: The weights are missing or damaged.
        """
        self.folder = Path(folder)
        self._read_config = config = load_config(self.folder)
        self._shards = Shards(self.folder)
        file = str(self.folder / "config.json")
        tied = config.get("tie_word_embeddings") is True
        types = {name: info.dtype for name, info in self._shards.tensors.items()}
        plain = decoded_names(plain_names(types, self.folder, tied=tied), types)
        self.stored_names = {name: original for original, name in plain.items()}
        tensors = {name: self._shards.tensors[original] for name, original in self.stored_names.items()}
        self.layout = layout_of(self.folder, config, tensors)
        if self.layout == "original":
            config = hub_config(
                permitted(config, file, hub_config, allow_unknown_keys=allow_unknown_keys), file
            )
        self.config = known_config(config, file, allow_unknown_keys=allow_unknown_keys)
        check_counts(self.config, len(tensors), self.folder)
        self.files = self._shards.files
        # OpenAI's repository has the original weights in a folder of their own, below the tokenizer.
        self.companions = (self.folder, self.folder.parent) if self.layout == "original" else (self.folder,)
        self._block = fp8_block_size(self.config, file)
        self._packing, self._packings = read_quantization(self.config, file)
        self._encoded = {
            name: (encoding, parts)
            for name in tensors
            for encoding in ENCODINGS
            if (parts := encoding.find(name, tensors))
        }
        consumed = {
            part for name, (_, parts) in self._encoded.items() for part in parts.values() if part != name
        }
        self.names = [name for name in tensors if name not in consumed]

    @property
    def name(self) -> str:
        """The folder's name; of a folder in the hub's cache, its repository and revision."""
        folder = self.folder.resolve()
        if folder.parent.name != "snapshots":
            return folder.name
        return f"{folder.parent.parent.name.removeprefix('models--').replace('--', '/')}@{folder.name}"

    @property
    def fingerprint(self) -> str:
        """A hash of config.json, of the files' names and sizes, and of what their headers say."""
        facts = [self._read_config, [[name, path.stat().st_size] for name, path in self.files.items()]]
        tensors = [[name, info.dtype, info.shape] for name, info in self._shards.tensors.items()]
        return hashlib.sha256(json.dumps([*facts, tensors], sort_keys=True).encode()).hexdigest()

    @property
    def modified(self) -> list[int]:
        """When the files of weights were last changed, in nanoseconds."""
        return [path.stat().st_mtime_ns for path in self.files.values()]

    def read(self, name: str) -> Tensor:
        """Return a tensor; none of it is read before somebody asks.

        Raises:
            ConversionError: Its parts do not belong together, or one of them is missing.
        """
        try:
            if name in self._encoded:
                encoding, names = self._encoded[name]
                parts = {part: self._stored(each) for part, each in names.items()}
                return encoding.read(self, name, parts)
            dtype = self._shards.tensors[self.stored_names[name]].dtype
            if dtype not in FLOATS:
                raise ValueError(
                    f"it is stored as {dtype}, meaningless without scales, and those are missing"
                )
            return plain(self._stored(name))
        except ValueError as error:
            raise ConversionError(f"{self.folder}: tensor '{name}': {error}") from None

    def _stored(self, name: str) -> Rows:
        return stored(self._shards, self.stored_names[name])

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the names in the files of all that is stored for a tensor."""
        parts = self._encoded[name][1].values() if name in self._encoded else (name,)
        return tuple(self.stored_names[part] for part in parts)

    def _read_mxfp4(self, _: str, parts: dict[str, Rows]) -> Tensor:
        return mxfp4_blocks(parts["weight"], parts["scales"])

    def _read_fp8(self, _: str, parts: dict[str, Rows]) -> Tensor:
        codes, scales = parts["weight"], parts["scales"]
        if codes.dtype != "F8_E4M3":
            raise ValueError(f"it has FP8 scales but is stored as {codes.dtype}")
        if scales.dtype == "F8_E8M0":
            scales = scales.map(e8m0_values, "F32")
        return fp8_blocks(codes, scales, self._block)

    def _read_packed(self, name: str, parts: dict[str, Rows]) -> Tensor:
        paths = (each.removesuffix(".weight") for each in (name, self.stored_names[name]))
        how = next((self._packings[path] for path in paths if path in self._packings), self._packing)
        if how is None:
            raise ValueError("it is packed, and `quantization` in config.json does not say how")
        return packed(parts, replace(how, global_scale="global_scale" in parts))


ENCODINGS = (
    Encoding(codes="_blocks", parts={"scales": "_scales"}, read=Source._read_mxfp4),
    Encoding(codes=".blocks", parts={"scales": ".scales"}, read=Source._read_mxfp4),
    Encoding(codes="", parts={"scales": "_scale_inv"}, read=Source._read_fp8),
    Encoding(
        codes=".weight",
        parts={"scales": ".scales", "biases": ".biases", "global_scale": ".global_scale"},
        read=Source._read_packed,
    ),
)
