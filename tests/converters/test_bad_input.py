"""A folder that cannot be converted gets one clear line, and no output."""

from __future__ import annotations

import json
import logging

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import ConversionError, MacmoeError, UsageError
from macmoe_converters import open_conversion
from tests.converters import layouts
from tests.converters.samples import CONFIGS, Stored, bf16, draw, f32, from_mlx, u8, write_file, write_folder

QWEN3, MOE, OSS, DEEPSEEK = (CONFIGS[name] for name in ("qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3"))
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
O_PROJ = "model.layers.0.self_attn.o_proj.weight"
PACKED = {"weight": mx.zeros((64, 16), mx.uint32), "scales": mx.zeros((64, 4)), "biases": mx.zeros((64, 4))}


def hub(config):
    return layouts.hub(draw(config), config)


def fp8():
    return layouts.fp8_blocks(hub(QWEN3), power_of_two=True)[0]


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def packed(**changes):
    """Return a Qwen3 folder's tensors with one packed matrix."""
    parts = {f"{O_PROJ.removesuffix('weight')}{part}": array for part, array in (PACKED | changes).items()}
    return without(hub(QWEN3), O_PROJ) | {
        name: from_mlx(array) for name, array in parts.items() if array is not None
    }


def mlx_config(**how):
    return QWEN3 | {"quantization": how}


CASES = {
    "missing tensor": (QWEN3, lambda: without(hub(QWEN3), O_PROJ), rf"without a source: 1 \({O_PROJ}\)"),
    "missing expert": (
        MOE,
        lambda: without(hub(MOE), "model.layers.0.mlp.experts.2.up_proj.weight"),
        r"tensors missing: 1 \(model\.layers\.0\.mlp\.experts\.2\.up_proj\.weight\)",
    ),
    "unknown tensor": (
        QWEN3,
        lambda: hub(QWEN3) | {"q.bias": f32(np.ones(2))},
        r"without a rule: 1 \(q\.bias\)",
    ),
    "wrong shape": (
        QWEN3,
        lambda: hub(QWEN3) | {O_PROJ: bf16(np.ones((2, 3), np.float32))},
        r"of shape \[2, 3\] cannot become .* of shape \[64, 128\]",
    ),
    "scalar": (QWEN3, lambda: hub(QWEN3) | {O_PROJ: bf16(np.float32(1).reshape(()))}, "cannot become"),
    "experts of unequal size": (
        MOE,
        lambda: hub(MOE) | {"model.layers.0.mlp.experts.2.up_proj.weight": bf16(np.ones((3, 5), np.float32))},
        "cannot become",
    ),
    "FP8 without scales": (
        QWEN3 | FP8,
        lambda: without(fp8(), f"{O_PROJ}_scale_inv"),
        "stored as F8_E4M3.*missing",
    ),
    "scales without FP8": (
        QWEN3 | FP8,
        lambda: without(fp8(), O_PROJ),
        rf"without a rule: 1 \({O_PROJ}_scale_inv\)",
    ),
    "scales of something plain": (
        QWEN3 | FP8,
        lambda: fp8() | {O_PROJ: hub(QWEN3)[O_PROJ]},
        "has FP8 scales but is stored as BF16",
    ),
    "FP8 scales of another shape": (
        QWEN3 | FP8,
        lambda: fp8() | {f"{O_PROJ}_scale_inv": f32(np.ones((3, 3)))},
        "do not cover",
    ),
    "FP8 blocks of no size": (
        QWEN3 | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 0]}},
        fp8,
        "two lengths are needed",
    ),
    "another quantizer": (
        QWEN3 | {"quantization_config": {"quant_method": "awq"}},
        fp8,
        "quantized with AWQ",
    ),
    "blocks without scales": (
        OSS,
        lambda: without(layouts.mxfp4(draw(OSS), OSS), "model.layers.0.mlp.experts.down_proj_scales"),
        "stored as U8.*missing",
    ),
    "blocks of another shape": (
        OSS,
        lambda: (
            layouts.mxfp4(draw(OSS), OSS)
            | {"model.layers.0.mlp.experts.down_proj_scales": u8(np.ones((4, 64, 3), np.uint8))}
        ),
        "do not belong together",
    ),
    "integers": (
        QWEN3,
        lambda: hub(QWEN3) | {O_PROJ: Stored(dtype="I32", array=np.ones((64, 128), "i4"))},
        "as I32",
    ),
    "packed, nobody says how": (QWEN3, packed, "does not say how"),
    "packed in another way": (mlx_config(group_size=64, bits=4), packed, "not 4-bit affine in groups of 64"),
    "packed without biases": (
        mlx_config(group_size=32, bits=4),
        lambda: packed(biases=None),
        "not 4-bit affine",
    ),
    "packed with byte scales": (
        mlx_config(group_size=32, bits=4),
        lambda: packed(scales=mx.zeros((64, 4), mx.uint8)),
        "not 4-bit affine",
    ),
    "unsupported model type": (
        QWEN3 | {"model_type": "llama"},
        lambda: hub(QWEN3),
        "'llama' is not supported",
    ),
    "config key missing": (without(QWEN3, "head_dim"), lambda: hub(QWEN3), "head_dim"),
    "a billion layers": (
        QWEN3 | {"num_hidden_layers": 10**9},
        lambda: hub(QWEN3),
        r"num_hidden_layers in config\.json is 1,000,000,000, and the files hold \d+ tensors",
    ),
    "a billion prediction layers": (
        DEEPSEEK | {"num_nextn_predict_layers": 10**9},
        lambda: hub(DEEPSEEK),
        r"num_nextn_predict_layers in config\.json is 1,000,000,000",
    ),
    "original with another key": (
        layouts.original_config(OSS) | {"swa": 1},
        lambda: layouts.original(draw(OSS), OSS),
        "unknown key 'swa'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_folder_is_one_clear_line(tmp_path, case):
    config, make, message = CASES[case]
    folder = write_folder(tmp_path / "model", config, make())
    with pytest.raises(MacmoeError, match=message) as caught:
        open_conversion(folder).write(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_change_of_a_shape_is_an_expected_error(tmp_path_factory, data):
    family = data.draw(st.sampled_from(["qwen3_moe", "gpt_oss", "deepseek_v3"]))
    config = CONFIGS[family]
    stored = layouts.mxfp4(draw(config), config) if family == "gpt_oss" else hub(config)
    name = data.draw(st.sampled_from([name for name in sorted(stored) if "shared_head.head" not in name]))
    shape = tuple(data.draw(st.lists(st.integers(0, 40), max_size=4)))
    old = stored[name]
    stored[name] = Stored(dtype=old.dtype, array=np.ones(shape, old.array.dtype))
    folder = write_folder(tmp_path_factory.mktemp("fuzz") / "model", config, stored)
    if shape == old.array.shape or name.endswith(".2.embed_tokens.weight"):
        return
    with pytest.raises(ConversionError):
        open_conversion(folder)


JSON_VALUES = st.sampled_from(
    [None, True, False, 0, 1, -1, 7, 2.5, 1e30, "", "yarn", [], [1, 2], {}, {"a": 1}]
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # powers and logarithms of impossible numbers
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CONFIGS)), st.data())
def test_any_value_in_the_config_is_an_expected_error_or_none(tmp_path_factory, family, data):
    config = CONFIGS[family]
    key = data.draw(st.sampled_from([*sorted(config), "quantization", "quantization_config"]))
    stored = layouts.mxfp4(draw(config), config) if family == "gpt_oss" else hub(config)
    changed = config | {key: data.draw(JSON_VALUES)}
    folder = write_folder(tmp_path_factory.mktemp("fuzz") / "model", changed, stored)
    message = ""
    try:
        open_conversion(folder)
    except MacmoeError as error:
        message = str(error)
    assert "\n" not in message


def test_unknown_recipe_is_a_usage_error(tmp_path):
    folder = write_folder(tmp_path / "model", QWEN3, hub(QWEN3))
    with pytest.raises(UsageError, match="no recipe '3bit'; there are keep, 8bit"):
        open_conversion(folder, recipe="3bit")


def test_folder_without_config_says_so(tmp_path):
    write_file(tmp_path / "model.safetensors", hub(QWEN3))
    with pytest.raises(MacmoeError, match=r"config\.json: not found"):
        open_conversion(tmp_path)


def test_config_that_is_no_json_says_so(tmp_path):
    folder = write_folder(tmp_path / "model", QWEN3, hub(QWEN3))
    (folder / "config.json").write_text(json.dumps(QWEN3)[:-2])
    with pytest.raises(MacmoeError, match="invalid JSON"):
        open_conversion(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_that_is_no_number_is_a_warning(tmp_path, caplog, bad):
    values = np.ones(64, np.float32)
    values[7] = bad
    folder = write_folder(tmp_path / "model", QWEN3, hub(QWEN3) | {"model.norm.weight": bf16(values)})
    with caplog.at_level(logging.WARNING):
        open_conversion(folder).write(tmp_path / "out")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "tensor model.norm.weight holds 1 NaN" in message


def test_fp8_code_that_is_no_number_is_a_warning(tmp_path, caplog):
    stored = fp8()
    stored[O_PROJ].array[3, 4:6] = [0x7F, 0xFF]
    folder = write_folder(tmp_path / "model", QWEN3 | FP8, stored)
    with caplog.at_level(logging.WARNING):
        open_conversion(folder).write(tmp_path / "out")
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"tensor {O_PROJ} holds 2 NaN" in message
