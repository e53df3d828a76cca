"""Rules that the families share."""

from macmoe_converters.rules import Rule, drop, join, keep, rename, stack

LAYER = "model.layers.{layer}."
GATE_UP = "mlp.experts.gate_up_proj.weight"
DOWN = "mlp.experts.down_proj.weight"

# Everything outside the layers.
FRAME: tuple[Rule, ...] = (
    keep("model.embed_tokens.weight"),
    keep("model.norm.weight"),
    keep("lm_head.weight", when=("tie_word_embeddings", False)),
)

# What a source may hold besides, and no layout is written with. Transformers computes these tables and masks
# itself, too, whatever a checkpoint holds of them; older releases saved them.
ROTARY = "rotary tables are computed from config.json"
MASK = "masks are computed"
BESIDE: tuple[Rule, ...] = (
    drop(
        "lm_head.weight",
        "a copy of the embedding, which is tied to it",
        when=("tie_word_embeddings", True),
        copy_of="model.embed_tokens.weight",
        rewritten=False,
    ),
    *(drop(f"model.rotary_emb.{name}", ROTARY) for name in ("inv_freq", "original_inv_freq")),
    drop("model.causal_mask", MASK),
)
BUFFERS: tuple[Rule, ...] = (
    *(
        drop(f"self_attn.rotary_emb.{name}", ROTARY)
        for name in ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached")
    ),
    *(drop(f"self_attn.{name}", MASK) for name in ("bias", "masked_bias", "causal_mask")),
)

# Present in every layer of every family.
NORMS: tuple[Rule, ...] = (
    keep("input_layernorm.weight"),
    keep("post_attention_layernorm.weight"),
)

DENSE_MLP: tuple[Rule, ...] = tuple(keep(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down"))

# Experts of SwiGLU networks without biases. The hub has a matrix per expert, transformers 5 stacks them with
# gate rows above up rows, MLX stacks gate and up apart.
HUB_EXPERTS: tuple[Rule, ...] = (
    stack("mlp.experts.{expert}.gate_proj.weight", "mlp.experts.{expert}.up_proj.weight", into=GATE_UP),
    stack("mlp.experts.{expert}.down_proj.weight", into=DOWN),
)
MLX_EXPERTS: tuple[Rule, ...] = (
    join("mlp.switch_mlp.gate_proj.weight", "mlp.switch_mlp.up_proj.weight", into=GATE_UP),
    rename("mlp.switch_mlp.down_proj.weight", DOWN),
)
OTHER_EXPERTS: tuple[Rule, ...] = (
    keep(GATE_UP),
    keep(DOWN),
    rename("mlp.experts.gate_up_proj", GATE_UP),
    rename("mlp.experts.down_proj", DOWN),
)
EXPERTS = (*HUB_EXPERTS, *MLX_EXPERTS, *OTHER_EXPERTS)
