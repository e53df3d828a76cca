"""Rule table of GPT-OSS.

Layouts: hub (experts as MXFP4 blocks), dequantized hub (experts transposed: [experts, in, out]), OpenAI's
original, MLX, macmoe. All but MLX and macmoe interleave gate and up: rows 0, 2, 4, ... are gate, rows 1, 3,
5, ... are up.
"""

from macmoe_converters.common import BESIDE, BUFFERS, DOWN, FRAME, GATE_UP, LAYER, NORMS
from macmoe_converters.rules import (
    BIAS_ROWS,
    RuleTable,
    deinterleave,
    join,
    keep,
    rename,
    split,
    transpose,
    transpose_deinterleave,
    under,
)

GATE_UP_BIAS = "mlp.experts.gate_up_proj.bias"
DOWN_BIAS = "mlp.experts.down_proj.bias"

ATTENTION = (
    keep("self_attn.sinks"),
    *(keep(f"self_attn.{name}_proj.{part}") for name in "qkvo" for part in ("weight", "bias")),
)
ROUTER = (keep("mlp.router.weight"), keep("mlp.router.bias"))
MACMOE_EXPERTS = tuple(keep(name) for name in (GATE_UP, GATE_UP_BIAS, DOWN, DOWN_BIAS))
HUB_BLOCKS = (
    deinterleave("mlp.experts.gate_up_proj_blocks", GATE_UP),
    rename("mlp.experts.down_proj_blocks", DOWN),
)
HUB_EXPERTS = (
    transpose_deinterleave("mlp.experts.gate_up_proj", GATE_UP),
    transpose("mlp.experts.down_proj", DOWN),
    deinterleave("mlp.experts.gate_up_proj_bias", GATE_UP_BIAS, axis=BIAS_ROWS),
    rename("mlp.experts.down_proj_bias", DOWN_BIAS),
)
MLX_EXPERTS = (
    join("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight", into=GATE_UP),
    join("mlp.experts.gate_proj.bias", "mlp.experts.up_proj.bias", into=GATE_UP_BIAS, axis=BIAS_ROWS),
)

ORIGINAL_FRAME = (
    rename("embedding.weight", "model.embed_tokens.weight"),
    rename("norm.scale", "model.norm.weight"),
    rename("unembedding.weight", "lm_head.weight"),
)
QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
ORIGINAL_LAYER = (
    rename("attn.norm.scale", "input_layernorm.weight"),
    rename("mlp.norm.scale", "post_attention_layernorm.weight"),
    split("attn.qkv.weight", *(f"{name}.weight" for name in QKV)),
    split("attn.qkv.bias", *(f"{name}.bias" for name in QKV), axis=BIAS_ROWS),
    rename("attn.out.weight", "self_attn.o_proj.weight"),
    rename("attn.out.bias", "self_attn.o_proj.bias"),
    rename("attn.sinks", "self_attn.sinks"),
    rename("mlp.gate.weight", "mlp.router.weight"),
    rename("mlp.gate.bias", "mlp.router.bias"),
    deinterleave("mlp.mlp1_weight.blocks", GATE_UP),
    deinterleave("mlp.mlp1_bias", GATE_UP_BIAS, axis=BIAS_ROWS),
    rename("mlp.mlp2_weight.blocks", DOWN),
    rename("mlp.mlp2_bias", DOWN_BIAS),
)

LAYERS = (*NORMS, *ATTENTION, *ROUTER)

TABLE = RuleTable(
    rules=(
        *FRAME,
        *BESIDE,
        *ORIGINAL_FRAME,
        *under(LAYER, (*LAYERS, *BUFFERS, *MACMOE_EXPERTS, *HUB_BLOCKS, *HUB_EXPERTS, *MLX_EXPERTS)),
        *under("block.{layer}.", ORIGINAL_LAYER, to=LAYER),
    ),
    counts={"layer": "num_hidden_layers"},
    written={
        "hub": (*FRAME, *under(LAYER, (*LAYERS, *HUB_BLOCKS, *HUB_EXPERTS))),
        "mlx-lm": (*FRAME, *under(LAYER, (*LAYERS, *MLX_EXPERTS, keep(DOWN), keep(DOWN_BIAS)))),
    },
)
