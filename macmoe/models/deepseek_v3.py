"""DeepSeek-V3, R1 and V3.1: one architecture (arXiv 2412.19437).

Latent attention; the first layers dense, then a mixture of experts with group-limited sigmoid routing and a
shared expert; a multi-token-prediction layer that drafts the token after the next. Checked against
DeepSeek-V3 inference/model.py and transformers' modeling_deepseek_v3.py and MtpModel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Integer

from macmoe.config import RopeConfig, model_reader, read_rope
from macmoe.config_reader import ConfigReader
from macmoe.errors import ConfigError, UsageError
from macmoe.nn.cache import LatentCache, ModelCache
from macmoe.nn.decoder import CausalLM, Decoder, DecoderLayer
from macmoe.nn.latent_attention import LatentAttention
from macmoe.nn.mlp import MLP, swiglu
from macmoe.nn.moe import Experts, routed_bytes
from macmoe.nn.packed_cache import PackedCache
from macmoe.nn.positions import Positions
from macmoe.nn.routing import Logits, Routes, grouped_sigmoid_top_k, router_logits
from macmoe.protocols import Cache

IGNORED = {
    "head_dim": "a copy of qk_rope_head_dim in files of transformers 5",
    "num_key_value_heads": "latent attention has no key/value heads",
    "qk_head_dim": "qk_nope_head_dim + qk_rope_head_dim",
}
MLPS = ("dense", "sparse")
NO_BIAS = (False, "DeepSeek-V3 has no biases but the router's")
EXPECTED = {
    "hidden_act": (("silu", "swish"), "it is the activation of DeepSeek-V3"),
    "attention_bias": (False, "DeepSeek-V3 has no projection biases"),
    "mlp_bias": (False, "DeepSeek-V3 has no biases in its MLPs"),
    "qkv_bias": NO_BIAS,
    "topk_method": ("noaux_tc", "DeepSeek-V3 routes with a correction bias"),
    "scoring_func": ("sigmoid", "DeepSeek-V3 scores experts with a sigmoid"),
    "moe_layer_freq": (1, "every layer after the dense ones has experts"),
    "rope_interleave": (True, "the checkpoints store rotary pairs side by side"),
    "rope_interleaved": (True, "the checkpoints store rotary pairs side by side"),
    "rope_traditional": (True, "the checkpoints store rotary pairs side by side"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepseekV3Config:
    """Configuration under the hub's names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int
    first_k_dense_replace: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    mtp_own_embedding: bool
    mtp_own_head: bool
    rope: RopeConfig

    @property
    def prefill_bytes(self) -> int:
        """Bytes that a layer holds at once for each token of a prompt: its experts' rows."""
        return routed_bytes(self.num_experts_per_tok, self.hidden_size, self.moe_intermediate_size)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str = "config.json") -> "DeepseekV3Config":
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
                moe_intermediate_size=reader.size("moe_intermediate_size"),
                num_hidden_layers=reader.size("num_hidden_layers"),
                num_nextn_predict_layers=reader.size(
                    "num_nextn_predict_layers", 0, least=0, aliases=("num_mtp_layers",)
                ),
                first_k_dense_replace=reader.size("first_k_dense_replace", least=0),
                num_attention_heads=reader.size("num_attention_heads"),
                q_lora_rank=reader.size("q_lora_rank", None),
                kv_lora_rank=reader.size("kv_lora_rank"),
                qk_nope_head_dim=reader.size("qk_nope_head_dim"),
                qk_rope_head_dim=reader.size("qk_rope_head_dim"),
                v_head_dim=reader.size("v_head_dim"),
                n_routed_experts=reader.size(
                    "n_routed_experts", aliases=("num_local_experts", "num_experts")
                ),
                n_shared_experts=reader.size("n_shared_experts", least=0, aliases=("num_shared_experts",)),
                num_experts_per_tok=reader.size("num_experts_per_tok"),
                n_group=reader.size("n_group"),
                topk_group=reader.size("topk_group"),
                norm_topk_prob=reader.take("norm_topk_prob", bool),
                routed_scaling_factor=reader.take("routed_scaling_factor", float),
                rms_norm_eps=reader.take("rms_norm_eps", float),
                max_position_embeddings=rope.longest(max_position),
                tie_word_embeddings=reader.take("tie_word_embeddings", bool, False),
                mtp_own_embedding=reader.take("mtp_own_embedding", bool, False),
                mtp_own_head=reader.take("mtp_own_head", bool, False),
                rope=rope,
            )
            _check(config, reader)
        return config


def _check(config: DeepseekV3Config, reader: ConfigReader) -> None:
    layers, dense = config.num_hidden_layers, config.first_k_dense_replace
    reader.expect_all(EXPECTED)
    reader.expect_layers("layer_types", layers, lambda _: "full_attention", "every layer sees everything")
    reader.expect_layers(
        "mlp_layer_types", layers, lambda i: MLPS[i >= dense], "first_k_dense_replace says otherwise"
    )
    reader.ignore(IGNORED)
    if config.n_routed_experts % config.n_group or config.n_routed_experts // config.n_group < 2:
        raise ConfigError(
            f"{reader.file}: {config.n_routed_experts} experts do not form {config.n_group} groups of two "
            "or more"
        )


class Router(nn.Module):
    """Scores the experts; the correction bias balances their load and stays float32."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        self.weight = mx.zeros((config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = mx.zeros((config.n_routed_experts,))

    def score(self, x: Float[mx.array, "tokens dim"]) -> Logits:
        """Apply the matrix."""
        return x @ self.weight.T

    def __call__(self, x: Float[mx.array, "tokens dim"]) -> Routes:
        """Return the chosen experts and their weights."""
        return self.choose(router_logits(x, self.score))

    def choose(self, logits: Logits) -> Routes:
        """Return the experts chosen by these logits and their weights."""
        return grouped_sigmoid_top_k(
            logits,
            self.e_score_correction_bias,
            self.config.num_experts_per_tok,
            groups=self.config.n_group,
            top_groups=self.config.topk_group,
            normalize=self.config.norm_topk_prob,
            scale=self.config.routed_scaling_factor,
        )


class SparseMLP(nn.Module):
    """Routed experts plus a shared one that every token uses."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        dim, hidden_dim = config.hidden_size, config.moe_intermediate_size
        self.gate = Router(config)
        self.experts = Experts(config.n_routed_experts, dim, hidden_dim, swiglu)
        self.shared_experts = MLP(dim, hidden_dim * config.n_shared_experts)

    def __call__(self, x: Float[mx.array, "batch length dim"]) -> Float[mx.array, "batch length dim"]:
        """Apply the chosen experts and the shared one to each token."""
        tokens = x.reshape(-1, x.shape[-1])
        return self.experts(tokens, *self.gate(tokens)).reshape(x.shape) + self.shared_experts(x)


def _attention(config: DeepseekV3Config) -> LatentAttention:
    return LatentAttention(
        dim=config.hidden_size,
        heads=config.num_attention_heads,
        q_lora_rank=config.q_lora_rank,
        latent=config.kv_lora_rank,
        nope_dim=config.qk_nope_head_dim,
        rope_dim=config.qk_rope_head_dim,
        value_dim=config.v_head_dim,
        rope=config.rope,
    )


def _layer(config: DeepseekV3Config, layer: int) -> DecoderLayer:
    dense = layer < config.first_k_dense_replace
    mlp = MLP(config.hidden_size, config.intermediate_size) if dense else SparseMLP(config)
    return DecoderLayer(_attention(config), mlp, config.hidden_size, config.rms_norm_eps)


class SharedHead(nn.Module):
    """The norm before the output matrix, which the main model lends, unless a checkpoint has another one."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.mtp_own_head:
            self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class MultiTokenPrediction(DecoderLayer):
    """Predicts the token after the next from the main model's state and the next token.

    The embedding comes first in `eh_proj`, although the paper (arXiv 2412.19437, section 2.2) writes the
    state first. It is the model's, and so is the output matrix, except where a checkpoint holds others.
    """

    def __init__(self, config: DeepseekV3Config) -> None:
        dim, eps = config.hidden_size, config.rms_norm_eps
        super().__init__(_attention(config), SparseMLP(config), dim, eps)
        self.enorm = nn.RMSNorm(dim, eps=eps)
        self.hnorm = nn.RMSNorm(dim, eps=eps)
        self.eh_proj = nn.Linear(2 * dim, dim, bias=False)
        self.shared_head = SharedHead(config)
        if config.mtp_own_embedding:
            self.embed_tokens = nn.Embedding(config.vocab_size, dim)

    def draft(self, hidden: mx.array, embedded: mx.array, positions: Positions, cache: Any) -> mx.array:
        """Return the normed states [batch, length, dim] that the output matrix turns into logits."""
        x = self.eh_proj(mx.concatenate([self.enorm(embedded), self.hnorm(hidden)], axis=-1))
        return self.shared_head.norm(self(x, positions.mask(), positions, cache))


class DeepseekV3(CausalLM):
    """DeepSeek-V3 with its output matrix and its multi-token-prediction layers."""

    def __init__(self, config: DeepseekV3Config) -> None:
        layers = [_layer(config, i) for i in range(config.num_hidden_layers)]
        decoder = Decoder(
            config.vocab_size, config.hidden_size, config.rms_norm_eps, layers, windows=[None] * len(layers)
        )
        super().__init__(decoder, tied=config.tie_word_embeddings)
        self.config = config
        self.mtp = [MultiTokenPrediction(config) for _ in range(config.num_nextn_predict_layers)]

    def mtp_logits(
        self,
        hidden: Float[mx.array, "batch length dim"],
        next_tokens: Integer[mx.array, "batch length"],
        cache: Cache | None = None,
        depth: int = 0,
    ) -> Float[mx.array, "batch length vocab"]:
        """Return logits of the token after the next.

        Args:
            hidden: What `hidden()` returned: states after the final norm.
            next_tokens: The token that follows each of those positions.
            cache: Made by `make_mtp_cache`, or None.
            depth: Which multi-token-prediction layer.

        Raises:
            UsageError: The checkpoint came without such a layer.
        """
        if depth >= len(self.mtp):
            raise UsageError(
                f"this checkpoint has {len(self.mtp)} multi-token-prediction layers, no number {depth}"
            )
        positions = Positions.of(next_tokens, cache)
        layer_cache = None if cache is None else next(iter(cache))
        layer = self.mtp[depth]
        embedding = layer.embed_tokens if self.config.mtp_own_embedding else self.model.embed_tokens
        states = layer.draft(hidden, embedding(next_tokens), positions, layer_cache)
        return layer.shared_head.head(states) if self.config.mtp_own_head else self.logits(states)

    def make_cache(self, left_padding: Sequence[int] | None = None, bits: int | None = None) -> ModelCache:
        """Return an empty cache for one batch: latent + rope_dim values per token and layer."""
        width = self.config.kv_lora_rank + self.config.qk_rope_head_dim
        layers = [LatentCache() if bits is None else PackedCache(width, bits) for _ in self.model.layers]
        return ModelCache(layers, left_padding)

    def make_mtp_cache(self, left_padding: Sequence[int] | None = None) -> ModelCache:
        """Return an empty cache for one multi-token-prediction layer."""
        return ModelCache([LatentCache()], left_padding)
