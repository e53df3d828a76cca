"""What a configuration says about a model: parameters, cache, storage; no weights are needed.

The model is built with weights that are never computed, so that the figures are those of the code that runs:
shapes are counted, and the cache is asked what one token leaves in it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

from macmoe.config import ConfigReader, load_config, load_json
from macmoe.errors import ConfigError
from macmoe.families import family_of, known_config
from macmoe.location import ASSETS, find_model, suggestion
from macmoe.names import known_names, published
from macmoe.nn.cache import SlidingCache
from macmoe.nn.filling import after_one_token
from macmoe.nn.moe import Experts
from macmoe.nn.quantized import PACKED
from macmoe.paths import expand_home
from macmoe.shards import Shards

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from macmoe.families import Model

CACHE_BYTES = 2  # of a number that is not packed: bfloat16

CONFIGS = ASSETS / "configs"
CONFIG = "config.json"

# quant_method of the hub -> (bits per packed weight with its scale, the matrices that are packed).
# MXFP4 has a scale byte for 32 weights, block FP8 a float32 for 128 x 128.
HUB_PACKING = {
    "mxfp4": (4 + 8 / 32, r"\.experts\..*weight$"),
    "fp8": (8 + 32 / 128**2, r"\.(self_attn|mlp)\.(?!gate\.).*weight$"),
}
NOTHING = (0.0, r"$^")

# What is special about a family's attention, from its configuration.
ATTENTION: dict[str, Callable[[Any], str]] = {
    "gpt_oss": lambda c: f"GQA {c.num_attention_heads}/{c.num_key_value_heads} x {c.head_dim}, sinks",
    "qwen3": lambda c: f"GQA {c.num_attention_heads}/{c.num_key_value_heads} x {c.head_dim}, QK norm",
    "deepseek_v3": lambda c: f"MLA {c.num_attention_heads} x {c.kv_lora_rank} + {c.qk_rope_head_dim}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayer:
    """What one layer remembers: bytes per token, for every token or for the last `window` ones."""

    nbytes: int
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Exact counts; the multi-token-prediction layers stand apart, as they are not part of the model's 671 B.

    Attributes:
        embedding: The embedding matrix.
        head: The output matrix; 0 where it is the embedding matrix.
        body: Everything else.
        active_body: The part of the body that one token uses.
        mtp: The multi-token-prediction layers.
    """

    embedding: int
    head: int
    body: int
    active_body: int
    mtp: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.head + self.body

    @property
    def active(self) -> int:
        """Body and output matrix, as far as one token uses them (OpenAI's and DeepSeek's convention)."""
        return self.active_body + (self.head or self.embedding)

    @property
    def active_with_embedding(self) -> int:
        """The same with the embedding matrix (Qwen's convention)."""
        return self.active_body + self.head + self.embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One model, described.

    Attributes:
        attention: Kind, query/key heads and width; for latent attention heads, latent and rotary width.
        experts: Routed experts, 0 for a dense model; a token uses `top_k` of them, and all shared ones.
        positions: How they reach `max_positions`.
        stored_bytes: Of the checkpoint, where known.
        cache: What each layer remembers.
        cache_bits: Of a packed number in it; None: all are bfloat16.
    """

    name: str
    family: str
    layers: int
    dim: int
    vocab: int
    attention: str
    experts: int
    top_k: int
    shared_experts: int
    positions: str
    max_positions: int
    parameters: Parameters
    stored_bytes: float | None
    cache: tuple[CacheLayer, ...]
    cache_bits: int | None

    @property
    def stored_bits(self) -> float | None:
        """Stored bits per weight, scales included."""
        if self.stored_bytes is None:
            return None
        return 8 * self.stored_bytes / (self.parameters.total + self.parameters.mtp)

    @property
    def windows(self) -> list[int]:
        """The sliding windows, one for each layer that has one."""
        return [layer.window for layer in self.cache if layer.window is not None]

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes by which the cache grows with every token, however long the context."""
        return sum(layer.nbytes for layer in self.cache if layer.window is None)

    def cache_bytes(self, context: int) -> int:
        """Return the bytes of a cache that holds `context` tokens, windows included."""
        return sum(layer.nbytes * min(context, layer.window or context) for layer in self.cache)


def describe(
    name: str,
    config_data: Mapping[str, Any],
    stored_bytes: int | None = None,
    cache_bits: int | None = None,
) -> Architecture:
    """Describe the model of a configuration.

    Args:
        name: What to call it.
        config_data: The content of config.json.
        stored_bytes: Size of the weights on disk; without it the size is computed where the configuration
        says enough.
        cache_bits: Of a packed cache, see `LanguageModel.make_cache`.

    Raises:
        ConfigError: The configuration is not one of a supported family.
        UsageError: The cache of the model cannot be packed so.
    """
    family = family_of(config_data, name)
    model = family.build(config_data, name)
    config: Any = model.config
    experts = _experts(model)
    reader = ConfigReader(config_data, name)
    top_k = reader.take("num_experts_per_tok", int, aliases=("experts_per_token",)) if experts else 0
    shapes = _shapes(model)
    cache = _cache_layers(model, cache_bits)
    return Architecture(
        name=name,
        family=family.name,
        layers=config.num_hidden_layers,
        dim=config.hidden_size,
        vocab=config.vocab_size,
        attention=ATTENTION[family.name](config),
        experts=experts,
        top_k=top_k,
        shared_experts=reader.take("n_shared_experts", int, 0),
        positions=_positions(config),
        max_positions=config.max_position_embeddings,
        parameters=_count(shapes, top_k, experts),
        stored_bytes=stored_bytes or _stored_bytes(config_data, shapes),
        cache=cache,
        cache_bits=cache_bits,
    )


def shapes_of(config_data: Mapping[str, Any], where: str) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Return the shape of every parameter of a configuration's model, and the paths of what can be packed.

    Raises:
        ConfigError: The configuration is not one of a supported family.
    """
    model = family_of(config_data, where).build(config_data, where)
    return _shapes(model), {path for path, module in model.named_modules() if type(module) in PACKED}


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    weights: Any = tree_flatten(model.parameters())
    return {path: array.shape for path, array in weights}


def _experts(model: Model) -> int:
    stacks: list[Any] = [module for module in model.modules() if isinstance(module, Experts)]
    return stacks[0].gate_up_proj.weight.shape[0] if stacks else 0


def _cache_layers(model: Model, cache_bits: int | None) -> tuple[CacheLayer, ...]:
    """Look at what one token leaves in the cache."""
    return tuple(
        CacheLayer(
            nbytes=sum(map(_bytes_as_bfloat16, layer.state)),
            window=layer.window if isinstance(layer, SlidingCache) else None,
        )
        for layer in after_one_token(model, cache_bits)
    )


def _bytes_as_bfloat16(array: mx.array) -> int:
    """Return the bytes of an array if its floats, which are those of weights never loaded, were bfloat16."""
    return CACHE_BYTES * array.size if mx.issubdtype(array.dtype, mx.floating) else array.nbytes


def _positions(config: Any) -> str:
    """Say how the positions reach the longest context."""
    yarn = config.rope.yarn
    return f"YaRN x{yarn.factor:g} of {yarn.original_max_position_embeddings:,}" if yarn else "RoPE"


def _count(shapes: Mapping[str, tuple[int, ...]], top_k: int, experts: int) -> Parameters:
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    apart = ("model.embed_tokens.", "lm_head.", "mtp.")
    body = sum(size for path, size in sizes.items() if not path.startswith(apart))
    routed = sum(size for path, size in sizes.items() if re.match(r"model\..*\.experts\.", path))
    return Parameters(
        embedding=sizes["model.embed_tokens.weight"],
        head=sizes.get("lm_head.weight", 0),
        body=body,
        active_body=body - routed * (experts - top_k) // max(experts, 1),
        mtp=sum(size for path, size in sizes.items() if path.startswith("mtp.")),
    )


def _stored_bytes(config_data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> float | None:
    """Compute the size of a checkpoint that is stored plain or as the hub packs it."""
    if config_data.get("quantization"):
        return None
    plain = 32 if config_data.get("dtype", config_data.get("torch_dtype")) == "float32" else 16
    method = (config_data.get("quantization_config") or {}).get("quant_method")
    packed, pattern = HUB_PACKING.get(str(method), NOTHING)
    bits = sum(
        math.prod(shape) * (packed if len(shape) > 1 and re.search(pattern, path) else plain)
        for path, shape in shapes.items()
    )
    return bits / 8


def packaged_configs() -> list[str]:
    """Return the names whose configurations are part of this package."""
    return known_names()


def published_config(name: str) -> dict[str, Any] | None:
    """Return the configuration of a published model, by short name or repository; None: it is none."""
    model = published(name)
    return None if model is None else load_json(CONFIGS / f"{model.shape}.json") | dict(model.changes)


def find_config(name: str, *, allow_unknown_keys: bool = False) -> tuple[dict[str, Any], int | None]:
    """Return the configuration of a model, and the size of its weights if they are on this machine.

    Args:
        name: A name of `packaged_configs`, or whatever `find_model` knows.
        allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.

    Raises:
        MacmoeError: There is no such model, or its configuration cannot be read, or a file of its weights is
            missing or damaged.
    """
    local = expand_home(name).exists()
    config = None if local else published_config(name)
    if config is not None:
        return config, None
    if not (local or ":" in name or "/" in name):
        raise ConfigError(f"{name}: not a folder and not a known model{suggestion(name)}")
    folder = find_model(name, files=(CONFIG,))
    config = known_config(load_config(folder), name, allow_unknown_keys=allow_unknown_keys)
    if local and any(folder.glob("*.safetensors")):
        return config, sum(path.stat().st_size for path in Shards(folder).files.values())
    return config, sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None
