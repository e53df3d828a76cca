"""What is written in another layout is what its own programs load, and comes back bit for bit."""

from __future__ import annotations

import json
import warnings

import mlx.core as mx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import UsageError
from macmoe.families import FAMILIES, family_of
from macmoe.session import load_model
from macmoe.shards import Shards
from macmoe_converters import open_conversion
from macmoe_converters.conversion import TABLES
from macmoe_converters.packing import plain
from macmoe_converters.plan import make_plan
from macmoe_converters.targets import ENCODERS, Target, hub_spelling
from tests.conftest import ROOT
from tests.converters import layouts
from tests.converters.samples import CONFIGS, draw, in_memory, shapes, write_folder
from tests.converters.test_plan import VARIED

TINY = ("qwen3", "gpt_oss", "deepseek_v3")
TOKENS = [[5, 17, 42, 3, 60, 33, 8, 21, 11, 2]]


def stored(folder):
    """Return type, shape and bytes of every tensor."""
    shards = Shards(folder)
    return {
        name: (info.dtype, info.shape, bytes(shards.read_bytes(name, 0, info.nbytes)))
        for name, info in shards.tensors.items()
    }


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


# bfloat16, MXFP4, and FP8 in blocks with a prediction layer and its copies.
@pytest.mark.parametrize("through", ["macmoe", None])
@pytest.mark.parametrize("family", TINY)
def test_the_hub_s_layout_comes_back_bit_for_bit(tmp_path, family, through):
    hub = ROOT / "tests" / "assets" / "hub" / family
    folder = hub
    if through:
        folder = tmp_path / "macmoe"
        open_conversion(hub).write(folder)
    open_conversion(folder).write(tmp_path / "hub", to="hub", shard_bytes=500_000)
    assert stored(tmp_path / "hub") == stored(hub)
    assert config_of(tmp_path / "hub") == config_of(hub)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("layout", ENCODERS)
def test_every_bit_of_plain_weights_comes_back(tmp_path, family, layout):
    config = CONFIGS[family]
    source = layouts.dequantized if family == "gpt_oss" else layouts.hub
    weights = draw(config)
    if layout == "mlx-lm":
        weights = layouts.without_mtp(weights)
    folder = write_folder(tmp_path / "source", config, source(weights, config))
    first = open_conversion(folder)
    first.write(tmp_path / "there", to=layout)
    again = open_conversion(tmp_path / "there")
    before, after = dict(first.tensors()), dict(again.tensors())
    assert before.keys() == after.keys()
    assert [name for name in before if not mx.array_equal(before[name], after[name])] == []


def logits(folder):
    return np.array(load_model(folder, "float32")[1](mx.array(TOKENS)))


@pytest.fixture(scope="module")
def mlx_lm():
    """The peer; importing it lowers a limit of the process and warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlx_lm import utils
    return utils


def mlx_lm_logits(mlx_lm, folder):
    """Load and run with mlx-lm, in float32."""
    model, _ = mlx_lm.load_model(folder)
    model.set_dtype(mx.float32)
    if "float32" not in str(model(mx.array(TOKENS)).dtype):
        pytest.fail("the peer does not compute in float32")
    return np.array(model(mx.array(TOKENS)))


def truncated(folder, config):
    """Let GPT-OSS round the ends of its YaRN range, which mlx-lm does whatever the config says."""
    if config["model_type"] == "gpt_oss":
        config = config | {"rope_scaling": config["rope_scaling"] | {"truncate": True}}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("recipe", ["keep", "4bit", "experts3-rest8", "mxfp4"])
@pytest.mark.parametrize("family", TINY)
def test_mlx_lm_computes_the_same_from_its_layout(tmp_path, mlx_lm, family, recipe):
    hub = ROOT / "tests" / "assets" / "hub" / family
    conversion = open_conversion(hub, recipe=recipe)
    conversion.write(tmp_path / "mlx", to="mlx-lm")
    folder = truncated(tmp_path / "mlx", config_of(tmp_path / "mlx"))
    # Quantized embed_q (DeepSeek) is multiplied from either side, so float32 sums differ in order.
    np.testing.assert_allclose(mlx_lm_logits(mlx_lm, folder), logits(folder), atol=2e-5 * spread(folder))


def spread(folder):
    """Return the standard deviation of the logits: their unit."""
    return max(1.0, float(logits(folder).std()))


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
def test_transformers_computes_the_same_from_the_hub_s_layout(tmp_path, family):
    from transformers import AutoModelForCausalLM, Mxfp4Config

    built_in = ROOT / "macmoe" / "assets" / family
    open_conversion(built_in).write(tmp_path / "hub", to="hub", shard_bytes=500_000)
    options = {"quantization_config": Mxfp4Config(dequantize=True)} if family == "gpt_oss" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "hub", dtype=torch.float32, attn_implementation="eager", **options
        )
        with torch.no_grad():
            expected = model(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits(built_in), expected, atol=2e-4)


def test_transformers_computes_the_same_from_decoded_weights(tmp_path):
    """Of what MLX packed, the hub's layout gets the exact values."""
    from transformers import AutoModelForCausalLM

    hub = ROOT / "tests" / "assets" / "hub" / "deepseek_v3"
    open_conversion(hub, recipe="6bit").write(tmp_path / "small")
    open_conversion(tmp_path / "small").write(tmp_path / "hub", to="hub")
    assert "quantization_config" not in config_of(tmp_path / "hub")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hub", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits(tmp_path / "small"), expected, atol=2e-4)


@pytest.mark.parametrize("family", TINY)
def test_a_quantized_layout_of_mlx_lm_comes_back_bit_for_bit(tmp_path, family):
    first = open_conversion(ROOT / "tests" / "assets" / "hub" / family, recipe="experts4-rest8")
    first.write(tmp_path / "mlx", to="mlx-lm")
    again = open_conversion(tmp_path / "mlx")
    before, after = dict(first.tensors()), dict(again.tensors())
    same = [name for name in before if not name.startswith("mtp.")]
    if family == "deepseek_v3":
        assert before["model.layers.0.self_attn.k_up_proj.scales"].dtype == mx.uint8  # transposed, and back
    assert [name for name in same if not mx.array_equal(before[name], after[name])] == []
    for path in (name.removesuffix(".weight") for name in same if name.endswith(".weight")):
        assert first.config["quantization"].get(path) == again.config["quantization"].get(path)


@st.composite
def models(choose):
    model_type = choose(st.sampled_from(sorted(VARIED)))
    config = CONFIGS[model_type] | choose(st.fixed_dictionaries(VARIED[model_type]))
    if model_type == "gpt_oss":
        config |= {"layer_types": ["full_attention"] * config["num_hidden_layers"]}
    return config, choose(st.sampled_from(sorted(ENCODERS)))


@settings(max_examples=40, deadline=None)
@given(models())
def test_rules_read_backwards_and_forwards_make_every_parameter_again(example):
    config, layout = example
    family, parameters = family_of(config).name, shapes(config)
    tensors = {name: plain(in_memory(mx.zeros(shape))) for name, shape in parameters.items()}
    target = Target(family=family, layout=layout, table=TABLES[family], config=config)
    names = [written.name for written in target.weights(tensors)]
    assert len(set(names)) == len(names)
    if layout == "mlx-lm":
        config = config | {"num_nextn_predict_layers": 0}
        parameters = {name: shape for name, shape in parameters.items() if not name.startswith("mtp.")}
    steps = make_plan(TABLES[family], names, parameters, config, "model")
    assert sorted(target for step in steps for target in step.targets) == sorted(parameters)


def test_every_family_can_be_written_in_every_layout():
    for family in {family.name for family in FAMILIES.values()}:
        assert TABLES[family].written.keys() == ENCODERS.keys()
        for rules in TABLES[family].written.values():
            assert [rule.sources for rule in rules if rule.inverse is None] == []


@pytest.mark.parametrize(
    ("to", "recipe", "message"), [("gguf", "keep", "no layout"), ("hub", "4bit", "hub's")]
)
def test_what_cannot_be_written_is_refused(tmp_path, to, recipe, message):
    conversion = open_conversion(ROOT / "tests" / "assets" / "hub" / "qwen3", recipe=recipe)
    with pytest.raises(UsageError, match=message):
        conversion.write(tmp_path / "out", to=to)
    assert list(tmp_path.iterdir()) == []


def test_newer_spellings_become_the_hub_s():
    config = {
        "model_type": "qwen3_moe",
        "dtype": "bfloat16",
        "num_local_experts": 4,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10.0, "factor": 2.0},
    }
    assert hub_spelling(config) == {
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "num_experts": 4,
        "rope_theta": 10.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    }
    plain_rope = {"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 10.0}}
    assert hub_spelling(plain_rope)["rope_scaling"] is None


def test_blocks_with_several_scales_are_decoded(tmp_path):
    hub = ROOT / "tests" / "assets" / "hub" / "qwen3"
    open_conversion(hub, recipe="mxfp8").write(tmp_path / "small")
    open_conversion(tmp_path / "small").write(tmp_path / "hub", to="hub")
    assert {dtype for dtype, _, _ in stored(tmp_path / "hub").values()} == {"BF16", "F32"}
    np.testing.assert_allclose(logits(tmp_path / "hub"), logits(tmp_path / "small"), atol=1e-4)
