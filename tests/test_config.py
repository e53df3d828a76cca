"""The strict reader: both spellings give the same configuration, everything else is a helpful error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmoe.config import ConfigReader, Quantization, load_config, read_quantization, read_rope
from macmoe.errors import ConfigError
from macmoe.families import family_of
from tests.parity.cases import DEEPSEEK, GPT_OSS, QWEN3, QWEN3_MOE

TINY = {"qwen3": QWEN3, "qwen3_moe": QWEN3_MOE, "gpt_oss": GPT_OSS, "deepseek_v3": DEEPSEEK}


def test_a_key_is_taken_once_and_typed():
    reader = ConfigReader({"hidden_size": 64, "eps": 1}, "config.json")
    assert reader.take("hidden_size", int) == 64
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


@given(st.dictionaries(st.text(min_size=1), st.none() | st.integers() | st.text(), min_size=1))
def test_no_unknown_key_passes(data):
    with pytest.raises(ConfigError, match="unknown key"):
        ConfigReader(data, "config.json").finish()


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
    table = {"group_size": 64, "bits": 4, "a": {"group_size": 32, "bits": 4, "mode": "mxfp4"}, "b": False}
    top, paths = read_quantization({"quantization": table})
    assert top == Quantization(group_size=64, bits=4, mode="affine")
    assert paths == {"a": Quantization(group_size=32, bits=4, mode="mxfp4"), "b": None}
    assert read_quantization({}) == (None, {})


@pytest.mark.parametrize(
    "entry", [{"group_size": 64, "bits": 4, "mode": "mxfp4"}, {"bits": 4}, {"group_size": 7, "bits": 4}]
)
def test_impossible_packings_are_refused(entry):
    with pytest.raises(ConfigError, match="quantization"):
        read_quantization({"quantization": entry})


@pytest.mark.parametrize(("model_type", "nearest"), [("qwen3_moee", "qwen3_moe"), ("llama", ""), (None, "")])
def test_unsupported_model_types_are_named(model_type, nearest):
    with pytest.raises(ConfigError, match=f"model_type {model_type!r} is not supported.*{nearest}"):
        family_of({"model_type": model_type})


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
