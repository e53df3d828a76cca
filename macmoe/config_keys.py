"""Keys of config.json that change nothing these families compute, as tables with reasons.

Three classes of keys pass: those that a family *uses*, those whose value is as the family *expects* it, and
*bookkeeping*, which is here. Whatever is left could change the computation, and is refused.
"""

import re
from collections.abc import Mapping
from typing import Any

TRAINING = "training only"
RUNTIME = "how another program runs, not what is computed"
HISTORY = "says where the file comes from"
SAMPLING = "sampling is what generation_config.json is about"
LABELS = "names of a classifier's outputs, which a language model does not have"
ENDS = "read with the tokenizer and generation_config.json"
RESULTS = "what another library returns beside the logits"
TYPES = "the tensors say their own type"
LENGTHS = "max_position_embeddings says how long a context may be"

BOOKKEEPING = {
    "architectures": "checked by check_head",
    "model_type": "chooses the family",
    "quantization": "read by read_quantization",
    "quantization_config": "checked by refuse_quantization, read by the converters",
    **dict.fromkeys(("auto_map", "custom_pipelines", "trust_remote_code"), "remote code, never executed"),
    **dict.fromkeys(("dtype", "torch_dtype", "use_bfloat16", "params_dtype", "fp16", "bf16"), TYPES),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"), ENDS),
    **dict.fromkeys(("unk_token_id", "mask_token_id", "decoder_start_token_id"), ENDS),
    **dict.fromkeys(("tokenizer_class", "prefix", "chat_template", "tokenizer_name"), ENDS),
    **dict.fromkeys(("transformers_version", "transformers_weights", "library_name"), HISTORY),
    **dict.fromkeys(("name_or_path", "model_name", "model_id", "base_model", "version"), HISTORY),
    **dict.fromkeys(("base_model_name_or_path", "pretrained_model_name_or_path", "source"), HISTORY),
    **dict.fromkeys(("author", "authors", "description", "license", "tags", "language"), HISTORY),
    **dict.fromkeys(("datasets", "pipeline_tag", "task", "name", "comment", "comments"), HISTORY),
    **dict.fromkeys(("license_name", "license_link", "creator", "organization", "date"), HISTORY),
    **dict.fromkeys(("finetuning_task", "finetuned_from", "merge_method", "mergekit_config"), HISTORY),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "return_dict"), RESULTS),
    **dict.fromkeys(("output_router_logits", "output_scores", "output_logits"), RESULTS),
    **dict.fromkeys(("return_dict_in_generate", "keys_to_ignore_at_inference"), RESULTS),
    **dict.fromkeys(("id2label", "label2id", "num_labels", "problem_type"), LABELS),
    **dict.fromkeys(("task_specific_params", "classifier_activation"), LABELS),
    **dict.fromkeys(("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"), SAMPLING),
    **dict.fromkeys(("max_length", "min_length", "max_new_tokens", "min_new_tokens"), SAMPLING),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), SAMPLING),
    **dict.fromkeys(("early_stopping", "length_penalty", "diversity_penalty"), SAMPLING),
    **dict.fromkeys(("repetition_penalty", "no_repeat_ngram_size"), SAMPLING),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "generation_config"), SAMPLING),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "bad_words_ids"), SAMPLING),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"), SAMPLING),
    **dict.fromkeys(("exponential_decay_length_penalty", "suppress_tokens"), SAMPLING),
    "begin_suppress_tokens": SAMPLING,
    **dict.fromkeys(("use_cache", "cache_implementation", "device_map", "device", "max_memory"), RUNTIME),
    **dict.fromkeys(("torchscript", "tf_legacy_loss", "low_cpu_mem_usage", "offload_folder"), RUNTIME),
    **dict.fromkeys(("attn_implementation", "attention_implementation", "moe_implementation"), RUNTIME),
    **dict.fromkeys(("experts_implementation", "chunk_size_feed_forward", "use_kernels"), RUNTIME),
    **dict.fromkeys(("use_grouped_mm", "use_liger_kernel", "moe_backend", "attn_backend"), RUNTIME),
    **dict.fromkeys(("ep_size", "tp_size", "pp_size", "pretraining_tp", "tensor_parallel"), RUNTIME),
    **dict.fromkeys(("world_size", "num_gpus", "gpu_memory_utilization", "enforce_eager"), RUNTIME),
    **dict.fromkeys(("gradient_checkpointing", "seq_aux", "freeze_router", "router_dtype"), TRAINING),
    **dict.fromkeys(("router_aux_loss_coef", "aux_loss_alpha", "load_balance_coeff"), TRAINING),
    **dict.fromkeys(("use_reentrant", "label_smoothing", "learning_rate", "weight_decay"), TRAINING),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "max_sequence_length", "seq_length"), LENGTHS),
    **dict.fromkeys(("model_max_length", "context_length", "n_ctx", "n_positions", "max_model_len"), LENGTHS),
}

# What a name says, wherever programs invent new ones.
PATTERNS = {
    r"_.*": "private to the program that wrote it",
    r"(unsloth|axolotl|llamafactory|llama_factory|verl|trl|mergekit|wandb|lm_?studio)_.*": HISTORY,
    r"(.*_)?(dropout|pdrop|drop_rate|layerdrop|drop_path)(_.*)?": TRAINING,
    r"(.*_)?loss(es)?(_.*)?": TRAINING,
    r"(.*_)?(load_)?balanc(e|ing)_(coeff?|rate|alpha|weight|factor|strategy|type)": TRAINING,
    r"(.*_)?(jitter|jitter_noise|jitter_eps|input_jitter)": TRAINING,
    r"(.*_)?bias_update_(rate|speed)": TRAINING,
    r"neftune_.*|(activation_)?recompute_.*|(.*_)?aux_free_.*": TRAINING,
    r"(gradient_checkpointing|init|initializer|dpo|grpo|ppo)_.*": TRAINING,
    r"(use_)?(flash|sdpa|xformers|triton|fused|liger)_.*": RUNTIME,
    r"(use_)?(flash_)?attn_(impl|implementation)": RUNTIME,
    r"(.*_)?(tp|pp|ep|fsdp|sp)_plan": RUNTIME,
    r"moe_(token_)?(dispatcher|permute|permutation|grouped_gemm|kernel|enable)(_.*)?": RUNTIME,
    r".+_dtype": TYPES,
    r"(tensor|pipeline|expert|data|context|sequence)_(model_)?parallel(_.*)?": RUNTIME,
    r"(.*_)?(sha|sha256|commit|commit_hash|timestamp|created|created_at|created_by)": HISTORY,
}

# Values that leave the computation as it is -> why.
NEUTRAL = {
    "is_causal": (True, "every token sees what came before it"),
    "use_causal_mask": (True, "every token sees what came before it"),
    "scale_attn_weights": (True, "scores are divided by the root of their width"),
    "use_rms_norm": (True, "every norm is RMSNorm"),
    "use_rmsnorm": (True, "every norm is RMSNorm"),
    "partial_rotary_factor": (1.0, "every rotary dimension is rotated"),
    "rotary_pct": (1.0, "every rotary dimension is rotated"),
    "embedding_multiplier": (1.0, "multiplies by one"),
    "residual_multiplier": (1.0, "multiplies by one"),
    "logit_scale": (1.0, "multiplies by one"),
    "logits_scaling": (1.0, "divides by one"),
}
# Switches whose absence means true: false would change something.
IMPLIED = frozenset(name for name, (value, _) in NEUTRAL.items() if value is True)
# Numbers of which 0 means none.
COUNTS = re.compile(r"(n|num)_.*|.*_(size|layers|heads|experts|rank|groups?|window|softcap(ping)?|noise|cap)")
# Other programs' words for the same -> the hub's, so that renaming is right.
SYNONYMS = {
    "d_model": "hidden_size",
    "dim": "hidden_size",
    "ffn_dim": "intermediate_size",
    "hidden_dim": "hidden_size",
    "layer_norm_eps": "rms_norm_eps",
    "moe_topk": "num_experts_per_tok",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "norm_eps": "rms_norm_eps",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "num_layers": "num_hidden_layers",
    "rope_base": "rope_theta",
    "rotary_emb_base": "rope_theta",
}


def reason_to_ignore(key: str, value: Any) -> str | None:
    """Return why this key of a config.json changes nothing; None where it could."""
    if key in NEUTRAL and value == NEUTRAL[key][0]:
        return NEUTRAL[key][1]
    if key in BOOKKEEPING:
        return BOOKKEEPING[key]
    if key not in IMPLIED and is_empty(value):
        return "empty, or a switch that is off"
    if COUNTS.fullmatch(key) and value == 0:
        return "there are none"
    return next((why for pattern, why in PATTERNS.items() if re.fullmatch(pattern, key)), None)


def is_empty(value: Any) -> bool:
    """Return whether a value says nothing: null, a switch that is off, an empty text, list or object."""
    return value is None or value is False or (isinstance(value, str | list | Mapping) and not value)
