"""GPT-OSS (arXiv 2508.10925).

Grouped-query attention with biases and learned sinks, alternating between a sliding window and the full
context; YaRN at every length; clamped SwiGLU experts with biases, chosen first and weighted by a softmax over
the chosen. Checked against openai/gpt-oss torch/model.py and transformers' modeling_gpt_oss.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float

from macmoe.config import RopeConfig, model_reader, read_rope
from macmoe.errors import ConfigError
from macmoe.nn.attention import attend, merge_heads, split_heads
from macmoe.nn.cache import FullCache, ModelCache, SlidingCache
from macmoe.nn.decoder import CausalLM, Decoder, DecoderLayer
from macmoe.nn.mlp import clamped_swiglu
from macmoe.nn.moe import Experts, routed_bytes
from macmoe.nn.packed_cache import PackedCache
from macmoe.nn.positions import Mask, Positions
from macmoe.nn.rope import Rope, attention_factor
from macmoe.nn.routing import router_logits, top_k_then_softmax
from macmoe.protocols import LayerCache

IGNORED = {
    "initial_context_length": "a copy of original_max_position_embeddings",
    "use_sliding_window": "layer_types says which layers have a window",
}
NONE_SHARED = (0, "GPT-OSS has no shared experts")
EXPECTED = {
    "hidden_act": (("silu", "swish"), "it is the activation of GPT-OSS"),
    "attention_bias": (True, "GPT-OSS has biases on every projection"),
    "mlp_bias": (True, "GPT-OSS has biases in its experts"),
    "swiglu_alpha": (1.702, "it is the gain inside the activation of GPT-OSS"),
    "n_shared_experts": NONE_SHARED,
    "num_shared_experts": NONE_SHARED,
    "shared_expert_intermediate_size": NONE_SHARED,
    "norm_topk_prob": (True, "the softmax is over the chosen experts"),
}
# Of every published GPT-OSS, and what transformers takes where a file leaves it out.
SWIGLU_LIMIT = 7.0
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class GptOssConfig:
    """Configuration under the hub's names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    swiglu_limit: float
    rms_norm_eps: float
    sliding_window: int
    layer_types: tuple[str, ...]
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig

    @property
    def windows(self) -> list[int | None]:
        """The sliding window of each layer, None for a layer that sees everything."""
        return [self.sliding_window if kind == SLIDING else None for kind in self.layer_types]

    @property
    def prefill_bytes(self) -> int:
        """Bytes that a layer holds at once for each token of a prompt: its experts' rows."""
        return routed_bytes(self.num_experts_per_tok, self.hidden_size, self.intermediate_size)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str = "config.json") -> "GptOssConfig":
        """Read config.json.

        Raises:
            ConfigError: A key is missing, unknown, or asks for something that these models do not have.
        """
        with model_reader(data, file) as reader:
            max_position = reader.size("max_position_embeddings")
            rope = read_rope(reader, max_position, YARN)
            config = cls(
                vocab_size=reader.size("vocab_size"),
                hidden_size=reader.size("hidden_size"),
                intermediate_size=reader.size("intermediate_size"),
                num_hidden_layers=reader.size("num_hidden_layers"),
                num_attention_heads=reader.size("num_attention_heads"),
                num_key_value_heads=reader.size("num_key_value_heads"),
                head_dim=reader.size("head_dim"),
                num_local_experts=reader.size("num_local_experts", aliases=("num_experts",)),
                num_experts_per_tok=reader.size("num_experts_per_tok", aliases=("experts_per_token",)),
                swiglu_limit=reader.take("swiglu_limit", float, SWIGLU_LIMIT),
                rms_norm_eps=reader.take("rms_norm_eps", float),
                sliding_window=reader.size("sliding_window"),
                layer_types=tuple(reader.take("layer_types", list)),
                max_position_embeddings=rope.longest(max_position),
                tie_word_embeddings=reader.take("tie_word_embeddings", bool, False),
                rope=rope,
            )
            _check_layer_types(config, file)
            reader.expect_all(EXPECTED)
            reader.ignore(IGNORED)
        return config


def _check_layer_types(config: GptOssConfig, file: str) -> None:
    if unknown := set(config.layer_types) - {FULL, SLIDING}:
        raise ConfigError(f"{file}: layer_types has {min(unknown)!r}; known are {FULL!r} and {SLIDING!r}")
    if len(config.layer_types) != config.num_hidden_layers:
        raise ConfigError(
            f"{file}: layer_types has {len(config.layer_types)} entries for {config.num_hidden_layers} layers"
        )


class Attention(nn.Module):
    """Grouped-query attention with biases and one sink per head."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        dim, heads, head_dim = config.hidden_size, config.num_attention_heads, config.head_dim
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 * attention_factor(config.rope.yarn) ** 2
        self.q_proj = nn.Linear(dim, heads * head_dim)
        self.k_proj = nn.Linear(dim, config.num_key_value_heads * head_dim)
        self.v_proj = nn.Linear(dim, config.num_key_value_heads * head_dim)
        self.o_proj = nn.Linear(heads * head_dim, dim)
        self.sinks = mx.zeros((heads,))
        self.rope = Rope(head_dim, config.rope)

    def __call__(
        self,
        x: Float[mx.array, "batch length dim"],
        mask: Mask,
        positions: Positions,
        cache: LayerCache | None,
    ) -> Float[mx.array, "batch length dim"]:
        """Attend to this call's tokens and the cached ones."""
        q = split_heads(self.q_proj(x), self.head_dim).transpose(0, 2, 1, 3)
        k = split_heads(self.k_proj(x), self.head_dim).transpose(0, 2, 1, 3)
        v = split_heads(self.v_proj(x), self.head_dim).transpose(0, 2, 1, 3)
        q, k = self.rope(q, positions.start), self.rope(k, positions.start)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.o_proj(merge_heads(attend(q, k, v, scale=self.scale, mask=mask, sinks=self.sinks)))


class SparseMLP(nn.Module):
    """Mixture of experts; the router takes the best experts, then the softmax over those."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.router = nn.Linear(config.hidden_size, config.num_local_experts)
        activation = partial(clamped_swiglu, limit=config.swiglu_limit)
        self.experts = Experts(
            config.num_local_experts, config.hidden_size, config.intermediate_size, activation, bias=True
        )

    def __call__(self, x: Float[mx.array, "batch length dim"]) -> Float[mx.array, "batch length dim"]:
        """Apply the chosen experts to each token."""
        tokens = x.reshape(-1, x.shape[-1])
        routes = top_k_then_softmax(router_logits(tokens, self.router), self.top_k)
        return self.experts(tokens, *routes).reshape(x.shape)


class GptOss(CausalLM):
    """GPT-OSS with its output matrix."""

    def __init__(self, config: GptOssConfig) -> None:
        dim, eps = config.hidden_size, config.rms_norm_eps
        blocks = [DecoderLayer(Attention(config), SparseMLP(config), dim, eps) for _ in config.layer_types]
        decoder = Decoder(config.vocab_size, dim, eps, blocks, config.windows)
        super().__init__(decoder, tied=config.tie_word_embeddings)
        self.config = config

    def make_cache(self, left_padding: Sequence[int] | None = None, bits: int | None = None) -> ModelCache:
        """Return an empty cache for one batch: sliding layers keep their window and some slack, unpacked."""

        def layer_cache(window: int | None) -> LayerCache:
            if window is not None:
                return SlidingCache(window)
            return FullCache() if bits is None else PackedCache(self.config.head_dim, bits)

        layers = [layer_cache(window) for window in self.config.windows]
        return ModelCache(layers, left_padding)
