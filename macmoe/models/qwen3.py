"""Qwen3, dense and mixture of experts (arXiv 2505.09388).

Grouped-query attention with RMSNorm on every query and key head before rotation, no biases; experts chosen by
softmax over all of them. Checked against transformers' modeling_qwen3.py and modeling_qwen3_moe.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float

from macmoe.config import RopeConfig, model_reader, read_rope
from macmoe.config_reader import REQUIRED, ConfigReader
from macmoe.nn.attention import attend, merge_heads, split_heads
from macmoe.nn.cache import FullCache, ModelCache
from macmoe.nn.decoder import CausalLM, Decoder, DecoderLayer
from macmoe.nn.mlp import MLP, swiglu
from macmoe.nn.moe import Experts, routed_bytes
from macmoe.nn.packed_cache import PackedCache
from macmoe.nn.positions import Mask, Positions
from macmoe.nn.rope import Rope, attention_factor
from macmoe.nn.routing import router_logits, softmax_then_top_k
from macmoe.protocols import LayerCache

IGNORED = {
    "max_window_layers": "only read when use_sliding_window is true, which is refused",
    "sliding_window": "only read when use_sliding_window is true, which is refused",
}
NO_BIAS = (False, "Qwen3 has no biases")
NONE_SHARED = (0, "Qwen3 has no shared experts")
ALL_NORMED = (True, "Qwen3 norms every query and key head")
EXPECTED = {
    "hidden_act": (("silu", "swish"), "it is the activation of Qwen3"),
    "attention_bias": NO_BIAS,
    "mlp_bias": NO_BIAS,
    "qkv_bias": NO_BIAS,
    "n_shared_experts": NONE_SHARED,
    "num_shared_experts": NONE_SHARED,
    "shared_expert_intermediate_size": NONE_SHARED,
    "qk_norm": ALL_NORMED,
    "use_qk_norm": ALL_NORMED,
    "use_sliding_window": (False, "no published Qwen3 uses sliding windows"),
}
MLPS = ("dense", "sparse")
# Of a model without experts.
EXPECTED_DENSE = {
    "decoder_sparse_step": (1, "this model_type has no experts"),
    "num_experts": (0, "this model_type has no experts"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """The routed experts of the sparse layers."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    decoder_sparse_step: int
    mlp_only_layers: tuple[int, ...]

    @classmethod
    def read(cls, reader: ConfigReader) -> "MoEConfig":
        """Take the keys of the mixture."""
        return cls(
            num_experts=reader.size("num_experts", aliases=("num_local_experts",)),
            num_experts_per_tok=reader.size("num_experts_per_tok"),
            moe_intermediate_size=reader.size("moe_intermediate_size"),
            norm_topk_prob=reader.take("norm_topk_prob", bool),
            decoder_sparse_step=reader.size("decoder_sparse_step", 1),
            mlp_only_layers=tuple(reader.take("mlp_only_layers", list, [])),
        )

    def is_sparse(self, layer: int) -> bool:
        """Return whether this layer has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config:
    """Configuration under the hub's names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig
    moe: MoEConfig | None

    @property
    def prefill_bytes(self) -> int:
        """Bytes that a layer holds at once for each token of a prompt: the rows of its experts or MLP."""
        if self.moe is None:
            return routed_bytes(1, self.hidden_size, self.intermediate_size)
        return routed_bytes(self.moe.num_experts_per_tok, self.hidden_size, self.moe.moe_intermediate_size)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str = "config.json") -> "Qwen3Config":
        """Read config.json.

        Raises:
            ConfigError: A key is missing, unknown, or asks for something that these models do not have.
        """
        with model_reader(data, file) as reader:
            max_position = reader.size("max_position_embeddings")
            rope = read_rope(reader, max_position)
            config = cls(
                vocab_size=reader.size("vocab_size"),
                hidden_size=reader.size("hidden_size"),
                intermediate_size=reader.size("intermediate_size"),
                num_hidden_layers=reader.size("num_hidden_layers"),
                num_attention_heads=reader.size("num_attention_heads"),
                num_key_value_heads=reader.size("num_key_value_heads"),
                head_dim=reader.size("head_dim", usual_head_dim(data)),
                rms_norm_eps=reader.take("rms_norm_eps", float),
                max_position_embeddings=rope.longest(max_position),
                tie_word_embeddings=reader.take("tie_word_embeddings", bool, False),
                rope=rope,
                moe=MoEConfig.read(reader) if data.get("model_type") == "qwen3_moe" else None,
            )
            _check(config, reader)
        return config


def usual_head_dim(data: Mapping[str, Any]) -> Any:
    """Return what a head_dim means that is not there; only transformers' Qwen3MoeConfig leaves it out.

    The shapes of the weights confirm it. Where it cannot be known the key is required.
    """
    width, heads = data.get("hidden_size"), data.get("num_attention_heads")
    if data.get("model_type") != "qwen3_moe" or type(width) is not int or type(heads) is not int or heads < 1:
        return REQUIRED
    return width // heads


def _check(config: Qwen3Config, reader: ConfigReader) -> None:
    layers = config.num_hidden_layers
    reader.expect_all(EXPECTED)
    moe = config.moe
    reader.expect_layers("layer_types", layers, lambda _: "full_attention", "every layer sees everything")
    if moe is None:
        reader.expect_all(EXPECTED_DENSE)
    else:
        why = "mlp_only_layers and decoder_sparse_step say otherwise"
        reader.expect_layers("mlp_layer_types", layers, lambda i: MLPS[moe.is_sparse(i)], why)
    reader.ignore(IGNORED)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        dim, head_dim = config.hidden_size, config.head_dim
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 * attention_factor(config.rope.yarn) ** 2
        self.q_proj = nn.Linear(dim, config.num_attention_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, config.num_key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, config.num_key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=config.rms_norm_eps)
        self.rope = Rope(head_dim, config.rope)

    def __call__(
        self,
        x: Float[mx.array, "batch length dim"],
        mask: Mask,
        positions: Positions,
        cache: LayerCache | None,
    ) -> Float[mx.array, "batch length dim"]:
        """Attend to this call's tokens and the cached ones."""
        q = self.q_norm(split_heads(self.q_proj(x), self.head_dim)).transpose(0, 2, 1, 3)
        k = self.k_norm(split_heads(self.k_proj(x), self.head_dim)).transpose(0, 2, 1, 3)
        v = split_heads(self.v_proj(x), self.head_dim).transpose(0, 2, 1, 3)
        q, k = self.rope(q, positions.start), self.rope(k, positions.start)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.o_proj(merge_heads(attend(q, k, v, scale=self.scale, mask=mask)))


class SparseMLP(nn.Module):
    """Mixture of experts; the router takes the softmax over all experts, then the best."""

    def __init__(self, dim: int, config: MoEConfig) -> None:
        super().__init__()
        self.top_k, self.normalize = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(dim, config.num_experts, bias=False)
        self.experts = Experts(config.num_experts, dim, config.moe_intermediate_size, swiglu)

    def __call__(self, x: Float[mx.array, "batch length dim"]) -> Float[mx.array, "batch length dim"]:
        """Apply the chosen experts to each token."""
        tokens = x.reshape(-1, x.shape[-1])
        routes = softmax_then_top_k(router_logits(tokens, self.gate), self.top_k, normalize=self.normalize)
        return self.experts(tokens, *routes).reshape(x.shape)


def _mlp(config: Qwen3Config, layer: int) -> nn.Module:
    if config.moe is not None and config.moe.is_sparse(layer):
        return SparseMLP(config.hidden_size, config.moe)
    return MLP(config.hidden_size, config.intermediate_size)


class Qwen3(CausalLM):
    """Qwen3 with its output matrix."""

    def __init__(self, config: Qwen3Config) -> None:
        dim, eps, layers = config.hidden_size, config.rms_norm_eps, config.num_hidden_layers
        blocks = [DecoderLayer(Attention(config), _mlp(config, i), dim, eps) for i in range(layers)]
        decoder = Decoder(config.vocab_size, dim, eps, blocks, windows=[None] * layers)
        super().__init__(decoder, tied=config.tie_word_embeddings)
        self.config = config

    def make_cache(self, left_padding: Sequence[int] | None = None, bits: int | None = None) -> ModelCache:
        """Return an empty cache for one batch; see `LanguageModel.make_cache`."""
        width = self.config.head_dim
        layers = [FullCache() if bits is None else PackedCache(width, bits) for _ in self.model.layers]
        return ModelCache(layers, left_padding)
