"""Rule table of Qwen3, dense and mixture of experts.

Layouts: hub (bfloat16, or FP8 blocks), transformers 5, MLX, macmoe.
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
from macmoe_converters.rules import RuleTable, keep, under

ATTENTION = (
    *(keep(f"self_attn.{name}_proj.weight") for name in "qkvo"),
    *(keep(f"self_attn.{name}_norm.weight") for name in "qk"),
)

LAYERS = (*NORMS, *ATTENTION, *DENSE_MLP, keep("mlp.gate.weight"))

TABLE = RuleTable(
    rules=(*FRAME, *BESIDE, *under(LAYER, (*LAYERS, *BUFFERS, *EXPERTS))),
    counts={"layer": "num_hidden_layers"},
    written={
        "hub": (*FRAME, *under(LAYER, (*LAYERS, *HUB_EXPERTS))),
        "mlx-lm": (*FRAME, *under(LAYER, (*LAYERS, *MLX_EXPERTS))),
    },
)
