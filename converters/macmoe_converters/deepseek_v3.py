"""Rule table of DeepSeek-V3, R1 and V3.1.

Layouts: hub (FP8 blocks or bfloat16), transformers 5, MLX (with kv_b_proj, or newer with embed_q and
unembed_out), macmoe. The hub stores multi-token-prediction layer j as decoder layer num_hidden_layers + j.
"""

from macmoe_converters.common import (
    BESIDE,
    BUFFERS,
    DENSE_MLP,
    EXPERTS,
    FRAME,
    HUB_EXPERTS,
    LAYER,
    MLX_EXPERTS,
    NORMS,
)
from macmoe_converters.rules import Rule, RuleTable, drop, keep, rename, split, transpose, under

KEY_UP = "self_attn.k_up_proj.weight"
VALUE_UP = "self_attn.v_up_proj.weight"

QUERIES = tuple(
    keep(f"self_attn.{name}.weight") for name in ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj")
)
LATENTS = (
    keep("self_attn.kv_a_proj_with_mqa.weight"),
    keep("self_attn.kv_a_layernorm.weight"),
    keep("self_attn.o_proj.weight"),
)
HUB_HEADS = (split("self_attn.kv_b_proj.weight", KEY_UP, VALUE_UP),)
MLX_HEADS = (
    transpose("self_attn.embed_q.weight", KEY_UP),
    rename("self_attn.unembed_out.weight", VALUE_UP),
)
HEADS = (keep(KEY_UP), keep(VALUE_UP), *HUB_HEADS, *MLX_HEADS)
ROUTER = (keep("mlp.gate.weight"), keep("mlp.gate.e_score_correction_bias"))
SHARED_EXPERT = tuple(keep(f"mlp.shared_experts.{name}_proj.weight") for name in ("gate", "up", "down"))
LAYERS = (*NORMS, *QUERIES, *LATENTS, *DENSE_MLP, *ROUTER, *SHARED_EXPERT)
DECODER_LAYER = (*LAYERS, *BUFFERS, *HEADS, *EXPERTS)
HUB_LAYER = (*LAYERS, *HUB_HEADS, *HUB_EXPERTS)
MLX_LAYER = (*LAYERS, *MLX_HEADS, *MLX_EXPERTS)

# Switches of macmoe's config.json: whether prediction layers have matrices of their own, which those of the
# published models share with the model.
OWN_EMBEDDING, OWN_HEAD = "mtp_own_embedding", "mtp_own_head"


def _lent(name: str, reason: str, copy_of: str, switch: str) -> tuple[Rule, Rule]:
    """Drop what is a copy of a matrix of the model, or keep it if it is none."""
    return keep(name, when=(switch, True)), drop(name, reason, when=(switch, False), copy_of=copy_of)


# What a multi-token-prediction layer has besides.
PREDICTION = (
    keep("enorm.weight"),
    keep("hnorm.weight"),
    keep("eh_proj.weight"),
    keep("shared_head.norm.weight"),
    *_lent(
        "embed_tokens.weight", "a copy of the model's embedding", "model.embed_tokens.weight", OWN_EMBEDDING
    ),
    *_lent("shared_head.head.weight", "a copy of the model's output matrix", "lm_head.weight", OWN_HEAD),
)
PREDICTION_LAYER = (*DECODER_LAYER, *PREDICTION)
HUB_PREDICTION_LAYER = "model.layers.{num_hidden_layers+mtp}."

TABLE = RuleTable(
    rules=(
        *FRAME,
        *BESIDE,
        *under(LAYER, DECODER_LAYER),
        *under(HUB_PREDICTION_LAYER, PREDICTION_LAYER, to="mtp.{mtp}."),
        *under("mtp.{mtp}.", PREDICTION_LAYER),
    ),
    counts={"layer": "num_hidden_layers", "mtp": "num_nextn_predict_layers"},
    written={
        "hub": (
            *FRAME,
            *under(LAYER, HUB_LAYER),
            *under(HUB_PREDICTION_LAYER, (*HUB_LAYER, *PREDICTION), to="mtp.{mtp}."),
        ),
        "mlx-lm": (*FRAME, *under(LAYER, MLX_LAYER)),
    },
    optional=("mtp",),
    left_out={"mlx-lm": ("mtp.", "mlx-lm has no prediction layers (MTP)")},
)
