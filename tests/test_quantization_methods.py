"""Weights that another method quantized are refused by its name, before anything else is said."""

import json

import pytest

from macmoe.config import load_config
from macmoe.errors import ConfigError
from macmoe.families import family_of
from tests.parity.cases import DEEPSEEK, GPT_OSS, QWEN3

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
MODELOPT = {"producer": {"name": "modelopt", "version": "0.31.0"}}
REFUSED = {
    "AWQ": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "AWQ ": {"zero_point": True, "bits": 4, "group_size": 128, "version": "gemm"},
    "GPTQ": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "GPTQ ": {"bits": 4, "group_size": 128, "desc_act": False},
    "GPTQ  ": {"quant_method": "gptq_marlin", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes ": {"load_in_8bit": True, "load_in_4bit": False},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "compressed-tensors ": {"config_groups": {"group_0": {}}, "format": "pack-quantized"},
    "AutoRound": {"quant_method": "auto-round", "bits": 4},
    "ModelOpt (NVFP4)": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "ModelOpt (FP8)": MODELOPT | {"quant_algo": "FP8", "config_groups": {"group_0": {}}},
    "ModelOpt": MODELOPT | {"config_groups": {"group_0": {}}},
    "one scale for each tensor": FP8,
    "one scale for each tensor ": {"fmt": "e4m3", "activation_scheme": "dynamic"},
    "static FP8": FP8 | {"activation_scheme": "static", "weight_block_size": [128, 128]},
    "static FP8 ": {"activation_scheme": "static"},
    "'newquant'": {"quant_method": "newquant"},
    "a method without a name": {"bits": 4, "group_size": 64},
}
READ = {
    "blocks": FP8 | {"weight_block_size": [128, 128]},
    "blocks of V3.1": FP8 | {"weight_block_size": [128, 128], "scale_fmt": "ue8m0"},
    "blocks without a name": {"activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "empty": {},
    "null": None,
}


@pytest.mark.parametrize(("name", "settings"), REFUSED.items(), ids=REFUSED)
@pytest.mark.parametrize("data", [QWEN3, DEEPSEEK], ids=["qwen3", "deepseek_v3"])
def test_the_method_is_named_first(data, name, settings):
    data = data | {"quantization_config": settings, "unknown": 1, "hidden_size": None}
    with pytest.raises(ConfigError, match="the weights are quantized with") as error:
        family_of(data).config.from_dict(data)
    assert f"{name.strip()}" in str(error.value)


@pytest.mark.parametrize("settings", READ.values(), ids=READ)
@pytest.mark.parametrize("data", [GPT_OSS, QWEN3, DEEPSEEK], ids=["gpt_oss", "qwen3", "deepseek_v3"])
def test_what_the_publishers_write_is_read(data, settings):
    config = family_of(data).config
    assert config.from_dict(data | {"quantization_config": settings}) == config.from_dict(data)


def test_the_copy_that_mlx_lm_keeps_of_its_own_settings_is_no_other_method():
    table = {"group_size": 64, "bits": 4, "lm_head": True}
    data = QWEN3 | {"quantization": table, "quantization_config": table}
    assert family_of(data).config.from_dict(data)


@pytest.mark.parametrize(
    ("name", "content", "method"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, r"ModelOpt \(NVFP4\)"),
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "GPTQ"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128}, "AWQ"),
    ],
)
def test_the_file_of_a_method_beside_the_configuration_is_seen(tmp_path, name, content, method):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=f"{name}: the weights are quantized with {method}"):
        load_config(tmp_path)


def test_a_quantized_cache_alone_is_no_quantized_weight(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3))
    content = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
    assert load_config(tmp_path) == QWEN3
