"""The strict reader: both spellings give the same configuration, everything else is a helpful error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmoe.config import ConfigReader, Quantization, load_config, read_quantization, read_rope
from macmoe.config_keys import BOOKKEEPING, is_empty
from macmoe.config_reader import misspelled
from macmoe.errors import ConfigError
from macmoe.families import family_of, known_config
from tests.parity.cases import DEEPSEEK, GPT_OSS, QWEN3, QWEN3_MOE

TINY = {"qwen3": QWEN3, "qwen3_moe": QWEN3_MOE, "gpt_oss": GPT_OSS, "deepseek_v3": DEEPSEEK}


def test_a_key_is_taken_once_and_typed():
    reader = ConfigReader({"hidden_size": 64, "layers": 2.0, "eps": 1}, "config.json")
    assert reader.take("hidden_size", int) == 64
    assert repr(reader.take("layers", int)) == "2"
    assert reader.take("eps", float) == 1.0
    reader.finish()


def read_width(data):
    reader = ConfigReader(data, "config.json")
    reader.take("hidden_size", int, aliases=("width",))
    reader.take("eps", float, 1e-6)
    reader.finish()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"config.json: key 'hidden_size' is missing"),
        ({"hiden_size": 64}, r"key 'hidden_size' is missing; did you mean 'hiden_size'\?"),
        ({"hidden_size": "64"}, r"key 'hidden_size' is '64' where int is needed"),
        ({"hidden_size": 64.5}, r"key 'hidden_size' is 64.5 where int is needed"),
        ({"hidden_size": True}, r"key 'hidden_size' is True where int is needed"),
        ({"hidden_size": 64, "eps": float("nan")}, r"key 'eps' is nan where float is needed"),
        ({"hidden_size": 64, "eps": 10**400}, r"key 'eps' is 10+ where float is needed"),
        ({"hidden_size": 64, "hidden_sise": 1}, r"unknown key 'hidden_sise'; did you mean 'hidden_size'\?"),
        ({"hidden_size": 64, "width": 32}, r"hidden_size and width mean the same and disagree"),
    ],
)
def test_bad_keys(data, message):
    with pytest.raises(ConfigError, match=message):
        read_width(data)


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text(min_size=1), min_size=1))
def test_every_unknown_key_that_says_something_is_named(data):
    with pytest.raises(ConfigError, match="unknown key") as error:
        ConfigReader(data, "config.json").finish()
    assert all(f"'{key}'" in str(error.value) for key in data)


@pytest.mark.parametrize("value", [None, False, "", [], {}])
def test_unknown_keys_that_say_nothing_pass(value):
    ConfigReader({"new_feature": value}, "config.json").finish()


@pytest.mark.parametrize("value", [0, 0.0, True, "no", [0], {"a": None}])
def test_unknown_keys_that_say_something_do_not(value):
    with pytest.raises(ConfigError, match="unknown key 'new_feature'"):
        ConfigReader({"new_feature": value}, "config.json").finish()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", '{"a": 1,}', "\ufeff{", "null"],
    ids=["empty", "cut", "list", "comma", "bom", "null"],
)
def test_invalid_json_names_the_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(tmp_path)


def test_a_missing_or_binary_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="not found"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_unknown_rope_types_are_refused():
    reader = ConfigReader(
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "c.json"
    )
    with pytest.raises(ConfigError, match="unknown rope type 'longrope'"):
        read_rope(reader, 4096)


def test_unknown_keys_inside_rope_scaling_are_refused():
    reader = ConfigReader(
        {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0, "trunkate": False}}, "c"
    )
    with pytest.raises(ConfigError, match=r"unknown key 'trunkate'; did you mean 'truncate'\?"):
        read_rope(reader, 4096)


def test_quantization_in_the_form_of_mlx_lm():
    mxfp4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    table = {"group_size": 64, "bits": 4, "a": mxfp4, "b": False, "c": True}
    top, paths = read_quantization({"quantization": table})
    assert top == Quantization(group_size=64, bits=4, mode="affine")
    assert paths == {"a": Quantization(group_size=32, bits=4, mode="mxfp4"), "b": None, "c": top}
    assert read_quantization({}) == (None, {})
    with pytest.raises(ConfigError, match="c is true, and there is no packing"):
        read_quantization({"quantization": {"c": True}})


@pytest.mark.parametrize(
    "entry", [{"group_size": 64, "bits": 4, "mode": "mxfp4"}, {"bits": 4}, {"group_size": 7, "bits": 4}]
)
def test_impossible_packings_are_refused(entry):
    with pytest.raises(ConfigError, match="quantization"):
        read_quantization({"quantization": entry})


def test_no_way_on_is_named_where_there_is_none():
    packed = {"group_size": 64, "bits": 4, "quant_method": "mlx"}
    assert read_quantization({"quantization": packed})[0] == Quantization(
        group_size=64, bits=4, mode="affine"
    )
    assert read_quantization({"quantization": False}) == (None, {})
    with pytest.raises(ConfigError, match="unknown key 'rotated'") as error:
        read_quantization({"quantization": packed | {"rotated": 1}})
    assert "--allow-unknown-keys" not in str(error.value)


@pytest.mark.parametrize(("model_type", "meant"), [("qwen3_moee", "qwen3_moe"), ("gptoss", "gpt_oss")])
def test_misspelled_model_types_are_named(model_type, meant):
    with pytest.raises(ConfigError, match=f"{model_type!r} is not supported.*; did you mean '{meant}'"):
        family_of({"model_type": model_type})


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3_next", "deepseek_v32", "deepseek_v2", None])
def test_other_models_are_no_misspellings(model_type):
    with pytest.raises(ConfigError, match=f"model_type {model_type!r} is not supported") as error:
        family_of({"model_type": model_type})
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("data", TINY.values(), ids=TINY)
def test_transformers_5_spelling_means_the_same(data, tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model(**data).save_pretrained(tmp_path)
    rewritten = load_config(tmp_path)
    assert "rope_parameters" in rewritten
    family = family_of(data)
    assert family.config.from_dict(rewritten) == family.config.from_dict(data)


@pytest.mark.parametrize("data", TINY.values(), ids=TINY)
def test_every_family_refuses_what_it_does_not_know(data):
    family = family_of(data)
    for change, message in (
        ({"hidden_act": "gelu"}, "hidden_act.*only 'silu'"),
        ({"attention_bias": not data["attention_bias"]}, "attention_bias"),
        ({"embedding_multiplier": 2.0}, "unknown key 'embedding_multiplier'"),
        ({"vocab_size": None}, "'vocab_size' is missing"),
        ({"num_hidden_layers": -1}, "'num_hidden_layers' is -1; it has to be at least 1"),
        ({"num_attention_heads": 0}, "'num_attention_heads' is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            family.config.from_dict(data | change)


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (QWEN3, {"use_sliding_window": True}, "sliding"),
        (QWEN3, {"num_shared_experts": 1}, "no shared experts"),
        (QWEN3_MOE, {"shared_expert_intermediate_size": 512}, "no shared experts"),
        (QWEN3_MOE, {"qkv_bias": True}, "no biases"),
        (QWEN3_MOE, {"use_qk_norm": False}, "norms every query and key head"),
        (QWEN3_MOE, {"mlp_layer_types": ["dense"] * 4}, "mlp_only_layers"),
        (QWEN3, {"num_experts": 8}, "this model_type has no experts"),
        (QWEN3, {"is_causal": False}, "unknown key 'is_causal'"),
        (QWEN3, {"rope_traditional": True}, "unknown key 'rope_traditional'"),
        (GPT_OSS, {"num_shared_experts": 1}, "no shared experts"),
        (GPT_OSS, {"swiglu_alpha": 1.0}, "swiglu_alpha"),
        (DEEPSEEK, {"rope_interleave": False}, "side by side"),
        (DEEPSEEK, {"index_topk": 2048}, "unknown key 'index_topk'"),
        (DEEPSEEK, {"num_shared_experts": 2}, "mean the same and disagree"),
        (QWEN3, {"architectures": ["Qwen3ForSequenceClassification"]}, "not the next token"),
        (QWEN3, {"rope_parameters": {"rope_theta": 5.0, "rope_type": "yarn"}}, "factor"),
        (GPT_OSS, {"layer_types": ["full_attention"]}, "1 entries for 4 layers"),
        (GPT_OSS, {"layer_types": ["full_attention", "linear_attention"] * 2}, "'linear_attention'"),
        (GPT_OSS, {"experts_per_token": 3}, "mean the same and disagree"),
        (DEEPSEEK, {"topk_method": "greedy"}, "only 'noaux_tc'"),
        (DEEPSEEK, {"scoring_func": "softmax"}, "only 'sigmoid'"),
        (DEEPSEEK, {"n_group": 5}, "do not form 5 groups"),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(data, change, message):
    with pytest.raises(ConfigError, match=message):
        family_of(data).config.from_dict(data | change)


# What people's folders hold beside the published keys, by who wrote them.
HARMLESS = {
    "older transformers": {
        "_name_or_path": "Qwen/Qwen3-8B",
        "is_decoder": False,
        "add_cross_attention": False,
        "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None,
        "finetuning_task": None,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "output_attentions": False,
        "pruned_heads": {},
        "return_dict": True,
        "tie_encoder_decoder": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "torchscript": False,
        "max_length": 20,
        "top_k": 50,
    },
    "transformers 5": {"_experts_implementation": "grouped_mm", "dtype": "bfloat16"},
    "trainers": {
        "_attn_implementation_autoset": True,
        "unsloth_version": "2025.9.7",
        "unsloth_fixed": True,
        "use_reentrant": False,
        "dropout": 0.15,
        "hidden_dropout": 0.1,
        "load_balance_coeff": 0.001,
        "moe_z_loss_coeff": 0.001,
        "router_jitter_noise": 0.01,
        "use_grouped_mm": True,
    },
    "runtimes": {"device_map": "auto", "trust_remote_code": True, "use_flash_attention": True},
    "megatron": {
        "moe_router_dtype": "fp32",
        "moe_token_dispatcher_type": "alltoall",
        "recompute_num_layers": 1,
    },
    "counts of nothing": {"num_nextn_predict_layers": 0, "attn_logit_softcapping": 0.0},
    "people": {"model_name": "mine", "license": "apache-2.0", "description": "", "tags": ["a"]},
}


@pytest.mark.parametrize("extra", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("data", TINY.values(), ids=TINY)
def test_bookkeeping_changes_nothing(data, extra):
    config = family_of(data).config
    extra = {key: value for key, value in extra.items() if key not in data}
    assert config.from_dict(data | extra) == config.from_dict(data)


@pytest.mark.parametrize("data", TINY.values(), ids=TINY)
def test_no_used_key_is_bookkeeping_or_a_slip_of_it(data):
    config = family_of(data).config
    for key, value in data.items():
        if not is_empty(value) and (key not in BOOKKEEPING or key == "model_type"):
            assert not misspelled(key, BOOKKEEPING)
    with pytest.raises(ConfigError, match="'rope_scaling' is 'x' where dict is needed"):
        config.from_dict(data | {"rope_scaling": "x"})


def test_all_unknown_keys_are_named_at_once_those_of_inner_objects_too():
    data = DEEPSEEK | {
        "alpha": 1,
        "n_grup": 4,
        "rope_scaling": DEEPSEEK["rope_scaling"] | {"trunkate": False},
    }
    with pytest.raises(ConfigError) as error:
        family_of(data).config.from_dict(data)
    for words in (
        "unknown keys 'rope_scaling.trunkate', 'alpha', 'n_grup'",
        "did you mean 'truncate' for 'rope_scaling.trunkate'?",
        "did you mean 'n_group' for 'n_grup'?",
        "--allow-unknown-keys",
    ):
        assert words in str(error.value)


def test_unknown_keys_can_be_allowed_and_are_named_then(caplog):
    data = QWEN3 | {"alpha": 1, "rope_scaling": {"rope_type": "default", "beta": 2}}
    known = known_config(data, "c.json", allow_unknown_keys=True)
    assert known == QWEN3 | {"rope_scaling": {"rope_type": "default"}}
    assert "c.json: ignored without knowing what they mean: rope_scaling.beta, alpha" in caplog.text
    with pytest.raises(ConfigError, match=r"unknown keys 'rope_scaling\.beta', 'alpha'"):
        known_config(data, "c.json")


def test_what_is_expected_is_checked_even_where_unknown_keys_are_allowed():
    with pytest.raises(ConfigError, match="only False is supported"):
        known_config(QWEN3 | {"attention_bias": True}, allow_unknown_keys=True)


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (QWEN3, {"sliding_window": 4096}),
        (QWEN3_MOE, {"qkv_bias": False, "use_qk_norm": True, "shared_expert_intermediate_size": 0}),
        (QWEN3_MOE, {"mlp_layer_types": ["sparse"] * 4, "layer_types": ["full_attention"] * 4}),
        (QWEN3, {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000}}),
        (
            QWEN3,
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1000000}}},
        ),
        (GPT_OSS, {"swiglu_limit": None}),
        (GPT_OSS, {"rope_scaling": None}),
        (DEEPSEEK, {"num_nextn_predict_layers": None, "num_mtp_layers": 1}),
        (DEEPSEEK, {"mlp_layer_types": ["dense", "sparse", "sparse"]}),
        (DEEPSEEK, {"hidden_act": "swish", "num_shared_experts": 1}),
    ],
)
def test_other_spellings_mean_the_same(data, change):
    config = family_of(data).config
    assert config.from_dict(data | change) == config.from_dict(data)


def test_transformers_leaves_the_heads_of_a_mixture_out():
    data = {key: value for key, value in QWEN3_MOE.items() if key != "head_dim"}
    assert known_config(data) == data | {"head_dim": 16}
    assert family_of(data).config.from_dict(data).head_dim == 16
    with pytest.raises(ConfigError, match="'head_dim' is missing"):
        known_config(data | {"model_type": "qwen3"})


def test_other_spellings_become_the_hubs():
    data = {key: value for key, value in DEEPSEEK.items() if key != "num_nextn_predict_layers"}
    assert known_config(data | {"num_mtp_layers": 1}) == DEEPSEEK


@pytest.mark.parametrize("data", [QWEN3, DEEPSEEK], ids=["qwen3", "deepseek_v3"])
def test_no_list_is_made_for_more_layers_than_there_can_be(data):
    huge = data | {"num_hidden_layers": 10**15}
    assert family_of(data).config.from_dict(huge).num_hidden_layers == 10**15
    with pytest.raises(ConfigError, match="does not fit the 1,000,000,000,000,000 layers"):
        family_of(data).config.from_dict(huge | {"layer_types": ["full_attention"]})


def test_rope_parameters_that_differ_between_layers_are_refused():
    rope = {name: {"rope_type": "default", "rope_theta": base} for name, base in (("a", 1e4), ("b", 1e6))}
    with pytest.raises(ConfigError, match="differ between types of layers"):
        family_of(QWEN3).config.from_dict(QWEN3 | {"rope_parameters": rope})


@pytest.mark.parametrize(
    ("yarn", "longest"),
    [
        ({"factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"factor": 1.0, "original_max_position_embeddings": 32768}, 40960),
        ({"factor": 2.0}, 81920),
        ({"factor": 4, "original_max_position_embeddings": 32768.0}, 131072),
    ],
)
def test_yarn_by_hand_makes_the_longest_context_longer(yarn, longest):
    data = QWEN3 | {"rope_scaling": {"rope_type": "yarn", **yarn}}
    assert family_of(data).config.from_dict(data).max_position_embeddings == longest
