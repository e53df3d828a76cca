"""Reuse of what the model has processed before: between the turns of a conversation, and between runs.

Chat formats drop the reasoning of earlier turns, so a prompt departs from the cache where the last answer
began. Full and latent layers go back by forgetting tokens; sliding layers remember only the newest ones, so
their state at the end of the last prompt is kept as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from macmoe.errors import CheckpointError, UsageError
from macmoe.families import Model
from macmoe.nn.cache import ModelCache, Snapshot
from macmoe.protocols import LayerCache
from macmoe.shards import read_header
from macmoe.version import __version__

METADATA_KEY = "macmoe_prompt_cache"
SAMPLE = 64  # elements of each parameter that enter the fingerprint


def fingerprint(model: Model) -> str:
    """Return a hash of names, types, shapes and the first elements of all parameters.

    Two models with the same fingerprint make the same cache; one of another precision has another.
    """
    digest = hashlib.sha256()
    parameters = cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))
    for name, array in parameters:
        sample = array.flatten()[:SAMPLE]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.array(sample.view(mx.uint8)).tobytes())
    return digest.hexdigest()


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class PromptCache:
    """The cache of one conversation, with the tokens it holds.

    Args:
        model: The model.
        bits: Of a packed number, see `LanguageModel.make_cache`; None for the model's type.

    Attributes:
        cache: The model's cache.
        tokens: The token ids it holds.
    """

    def __init__(self, model: Model, bits: int | None = None) -> None:
        self._model = model
        self._bits = bits
        self.cache = model.make_cache(bits=bits)
        self.tokens: list[int] = []
        self._stable: Snapshot | None = None

    def forget(self) -> None:
        """Hold nothing any more, because the model computes something else from now on."""
        self._start_afresh()

    def resume(self, prompt: Sequence[int]) -> list[int]:
        """Go back to where `prompt` departs from the tokens held, and return what is left to process.

        At least the last token is left, since its logits are needed.
        """
        self._settle()
        self._go_back(min(_common_prefix(self.tokens, prompt), max(len(prompt) - 1, 0)))
        self.tokens = list(prompt[: self.cache.offset])
        return list(prompt[self.cache.offset :])

    def _go_back(self, offset: int) -> None:
        """Return to `offset` tokens, or to fewer if that many cannot be had."""
        surplus = self.cache.offset - offset
        if surplus > self.cache.trimmable and self._stable is not None:
            self.cache.restore(self._stable)
            surplus = max(0, self.cache.offset - offset)
        if surplus > self.cache.trimmable:
            self._start_afresh()
            return
        self.cache.trim(surplus)
        if self._stable is not None and self._stable.offset > self.cache.offset:
            self._stable = None  # its full layers have forgotten what stood there

    def _settle(self) -> None:
        """Forget what an interrupted forward pass left in some of the layers."""
        known = min(len(self.tokens), *(layer.offset for layer in self.cache))
        if any(layer.offset - known > layer.trimmable for layer in self.cache):
            self._start_afresh()
            return
        for layer in self.cache:
            layer.trim(layer.offset - known)
        del self.tokens[known:]
        if self._stable is not None and self._stable.offset > known:
            self._stable = None

    def _start_afresh(self) -> None:
        self.cache, self.tokens, self._stable = self._model.make_cache(bits=self._bits), [], None

    def processed(self, tokens: Sequence[int]) -> None:
        """Take note of tokens that the cache now holds."""
        self.tokens += tokens

    def mark(self, offset: int) -> None:
        """Keep the state at `offset`, the end of a prompt, for the turns to come."""
        self._stable = self.cache.snapshot(offset)

    def save(self, path: Path) -> None:
        """Write the cache to a file, complete or not at all.

        Raises:
            CheckpointError: The file cannot be written; what was there before is still there.
        """
        self._settle()
        facts: dict[str, Any] = {
            **_identity(self._model),
            "bits": self._bits,
            "tokens": self.tokens,
            "stable": None,
        }
        arrays = _arrays("now", self.cache.layers)
        if self._stable is not None:
            facts["stable"] = self._stable.offset
            arrays |= _arrays("stable", self._stable.layers)
        temporary = path.with_name(f".{path.name}.safetensors")
        try:
            mx.save_safetensors(str(temporary), arrays, {METADATA_KEY: json.dumps(facts)})
            temporary.replace(path)
        except (OSError, RuntimeError) as error:  # MLX reports failures to write as the latter
            raise CheckpointError(f"{path}: the prompt cache cannot be written ({error})") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, model: Model, bits: int | None = None) -> PromptCache:
        """Read a cache that was saved for the same model, with the same bits.

        Raises:
            CheckpointError: The file is damaged, or made by another model, precision or version.
            UsageError: It is kept in other bits than asked for.
        """
        try:
            read_header(path)
        except CheckpointError:
            raise CheckpointError(
                f"{path}: not a prompt cache (a file that `--cache` wrote), or a damaged one; delete or "
                "rename it to start afresh"
            ) from None
        arrays, metadata = cast(
            "tuple[dict[str, mx.array], dict[str, str]]",
            mx.load(str(path), format="safetensors", return_metadata=True),
        )
        if METADATA_KEY not in metadata:
            raise CheckpointError(f"{path}: not a prompt cache but weights; give the name of a new file")
        facts = json.loads(metadata[METADATA_KEY])
        for what, value in _identity(model).items():
            if facts.get(what) != value:
                raise CheckpointError(
                    f"{path}: this prompt cache was made by another {what}; delete it to start afresh"
                )
        if facts.get("bits") != bits:
            raise UsageError(
                f"{path}: this prompt cache is kept in {_precision(facts.get('bits'))}, not in "
                f"{_precision(bits)}; ask for the same (`--cache-bits`), or delete it to start afresh"
            )
        result = cls(model, bits)
        result.tokens = facts["tokens"]
        layers = _layers("now", arrays, model.make_cache(bits=bits), len(result.tokens))
        result.cache = ModelCache([layer or empty for layer, empty in zip(layers, result.cache, strict=True)])
        if facts["stable"] is not None:
            stable = _layers("stable", arrays, model.make_cache(bits=bits), facts["stable"])
            result._stable = Snapshot(facts["stable"], tuple(stable))
        return result


def _identity(model: Model) -> dict[str, str]:
    """Return what has to agree for a cache to be usable, under the names used in errors."""
    return {"version of macmoe": __version__, "model or precision": fingerprint(model)}


def _precision(bits: int | None) -> str:
    return "full precision" if bits is None else f"{bits} bits"


def _arrays(kind: str, layers: Iterable[LayerCache | None]) -> dict[str, mx.array]:
    return {
        f"{kind}.{index}.{part}": array
        for index, layer in enumerate(layers)
        for part, array in enumerate(layer.state if layer is not None else ())
    }


def _layers(
    kind: str, arrays: Mapping[str, mx.array], empty: Iterable[LayerCache], offset: int
) -> list[LayerCache | None]:
    """Fill empty layers with the saved ones of one kind; return None for those that were not saved."""
    layers: list[LayerCache | None] = []
    for index, layer in enumerate(empty):
        parts = [arrays[name] for name in sorted(arrays) if name.startswith(f"{kind}.{index}.")]
        layer.load(parts, offset)
        layers.append(layer if parts else None)
    return layers
