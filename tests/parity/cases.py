"""Tiny random configurations of the three families, as data: what is written, how, and what it must exercise.

`config` is the hub's spelling of config.json. A `Case` says which spelling, tensor layout and storage the
checkpoint under test gets; `builder.py` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Config = dict[str, Any]

COMMON: Config = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0",
    "use_cache": True,
    "vocab_size": 320,
}
QWEN3: Config = COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "max_position_embeddings": 40960,
    "max_window_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
}
QWEN3_MOE: Config = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 96,
    "norm_topk_prob": True,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
GPT_OSS_YARN: Config = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": False,
}
GPT_OSS: Config = COMMON | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "eos_token_id": 2,
    "experts_per_token": 4,
    "head_dim": 32,
    "initial_context_length": 4096,
    "intermediate_size": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 131072,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_scaling": GPT_OSS_YARN,
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 8,
    "swiglu_limit": 7.0,
}
DEEPSEEK_YARN: Config = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
DEEPSEEK: Config = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "intermediate_size": 160,
    "kv_lora_rank": 32,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 96,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_scaling": DEEPSEEK_YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "v_head_dim": 32,
}
# YaRN from 64 to 256 positions: the 100-token tests leave the original range, the long ones leave both.
SHORT_YARN: Config = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# Widths that are no powers of two; 160 is one FP8 block and a quarter.
FP8_SHAPES: Config = {
    "hidden_size": 160,
    "intermediate_size": 288,
    "kv_lora_rank": 96,
    "moe_intermediate_size": 96,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 3,
    "q_lora_rank": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One checkpoint: a configuration and the way it is stored.

    Attributes:
        config: config.json under the hub's keys.
        style: "hub" writes these keys and the hub's tensors; "v5" lets transformers write all.
        fused: Experts as one tensor per layer, as transformers 5 keeps them in memory (style "v5" only).
        storage: Type of the tensors (style "hub" only). "mxfp4" packs experts; "ue8m0" and "fp8" pack FP8
            blocks with power-of-two and with arbitrary scales; what they leave unpacked is bfloat16.
        shards: 1 for a single file; with style "v5" any other number means several.
        bias_shift: Added to every correction bias of DeepSeek's routers.
        mtp: The checkpoint holds the multi-token-prediction layer.
        head_copy: A tied checkpoint stores lm_head.weight all the same.
        long: Also compared at 5,000 positions.
    """

    config: Config
    style: Literal["hub", "v5"] = "hub"
    fused: bool = False
    storage: Literal["float32", "bfloat16", "mxfp4", "ue8m0", "fp8"] = "float32"
    shards: int = 1
    bias_shift: float = 0.0
    mtp: bool = False
    head_copy: bool = False
    long: bool = False


CASES: dict[str, Case] = {
    "qwen3": Case(config=QWEN3, storage="bfloat16", shards=2),
    "qwen3_tied": Case(config=QWEN3 | {"tie_word_embeddings": True}, head_copy=True),
    "qwen3_tied_v5": Case(config=QWEN3 | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}, style="v5"),
    "qwen3_yarn": Case(
        config=QWEN3
        | {
            "head_dim": 16,
            "num_hidden_layers": 3,
            "rope_scaling": SHORT_YARN,
            "max_position_embeddings": 256,
        },
        long=True,
    ),
    "qwen3_odd_v5": Case(
        config=QWEN3
        | {
            "head_dim": 24,
            "hidden_size": 72,
            "intermediate_size": 100,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "rope_scaling": SHORT_YARN | {"attention_factor": 0.8, "truncate": False, "beta_fast": 16.0},
            "vocab_size": 323,
        },
        style="v5",
        shards=3,
    ),
    "qwen3_moe": Case(config=QWEN3_MOE, storage="bfloat16", shards=3),
    "qwen3_moe_yarn": Case(
        config=QWEN3_MOE
        | {"head_dim": 16, "num_hidden_layers": 3, "norm_topk_prob": False, "rope_scaling": SHORT_YARN},
        style="v5",
        long=True,
    ),
    "qwen3_moe_mixed": Case(
        config=QWEN3_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [1], "intermediate_size": 96}
    ),
    "qwen3_moe_fused": Case(
        config=QWEN3_MOE
        | {"mlp_only_layers": [0], "num_experts": 6, "num_experts_per_tok": 6, "hidden_size": 80},
        style="v5",
        fused=True,
        shards=4,
    ),
    "gpt_oss": Case(config=GPT_OSS, long=True),
    "gpt_oss_truncate_v5": Case(
        config=GPT_OSS
        | {
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "num_hidden_layers": 3,
            "rope_scaling": GPT_OSS_YARN | {"truncate": True, "original_max_position_embeddings": 256},
            "sliding_window": 5,
        },
        style="v5",
        shards=3,
    ),
    "gpt_oss_attention_factor": Case(
        config=GPT_OSS
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_hidden_layers": 3,
            "max_position_embeddings": 256,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.1, "truncate": False},
            "sliding_window": 1,
            "swiglu_limit": 2.0,
        },
        storage="bfloat16",
    ),
    "gpt_oss_mxfp4": Case(config=GPT_OSS, storage="mxfp4"),
    "gpt_oss_mxfp4_odd": Case(
        config=GPT_OSS
        | {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_local_experts": 5},
        storage="mxfp4",
        shards=3,
    ),
    "deepseek": Case(config=DEEPSEEK, mtp=True, long=True),
    "deepseek_negative_bias": Case(config=DEEPSEEK, bias_shift=-1.5, mtp=True, storage="bfloat16", shards=3),
    "deepseek_mscale": Case(
        config=DEEPSEEK
        | {"rope_scaling": DEEPSEEK_YARN | {"mscale_all_dim": 0.707, "original_max_position_embeddings": 64}},
        bias_shift=-1.5,
    ),
    "deepseek_plain": Case(
        config=DEEPSEEK
        | {
            "first_k_dense_replace": 0,
            "n_group": 1,
            "norm_topk_prob": False,
            "num_hidden_layers": 2,
            "q_lora_rank": None,
            "rope_scaling": None,
            "topk_group": 1,
        }
    ),
    "deepseek_odd_v5": Case(
        config=DEEPSEEK
        | {
            "first_k_dense_replace": 2,
            "hidden_size": 72,
            "kv_lora_rank": 40,
            "n_shared_experts": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "qk_nope_head_dim": 24,
            "rope_scaling": DEEPSEEK_YARN | {"attention_factor": 0.9, "truncate": False},
            "v_head_dim": 40,
        },
        bias_shift=-3.0,
        style="v5",
        shards=3,
    ),
    "deepseek_fused": Case(config=DEEPSEEK | {"q_lora_rank": None}, style="v5", fused=True),
    "deepseek_ue8m0": Case(config=DEEPSEEK | FP8_SHAPES, storage="ue8m0", mtp=True, shards=3),
    "deepseek_fp8": Case(
        config=DEEPSEEK | FP8_SHAPES | {"moe_intermediate_size": 72, "kv_lora_rank": 84},
        storage="fp8",
        bias_shift=-1.5,
        mtp=True,
    ),
}
