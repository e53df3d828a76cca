"""Names that programs put around a model when they save it do not matter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import ConversionError
from macmoe.shards import Shards
from macmoe_converters import open_conversion
from macmoe_converters.names import plain_names
from tests.converters import layouts
from tests.converters.samples import CONFIGS, assert_same_bits, decoded, draw, shapes, write_folder

HUB_LAYOUTS = {
    "qwen3": layouts.hub,
    "qwen3_moe": layouts.hub,
    "gpt_oss": layouts.mxfp4,
    "deepseek_v3": layouts.hub,
}
WRAPPERS = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "torch.compile of each layer": lambda name: name.replace(".input_layer", "._orig_mod.input_layer"),
    "DDP": lambda name: f"module.{name}",
    "DDP of a compiled model": lambda name: f"module._orig_mod.{name}",
    "PEFT": lambda name: f"base_model.model.{name}",
    "Lightning": lambda name: f"model.{name}",
    "FSDP and checkpointed activations": lambda name: name.replace(
        "model.layers.0.", "model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "the decoder alone": lambda name: name.removeprefix("model."),
    "the decoder alone, compiled": lambda name: f"_orig_mod.{name.removeprefix('model.')}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", HUB_LAYOUTS)
def test_a_wrapper_s_names_are_taken_off(tmp_path, family, wrapper):
    config = CONFIGS[family]
    stored = HUB_LAYOUTS[family](draw(config), config)
    renamed = {WRAPPERS[wrapper](name): tensor for name, tensor in stored.items()}
    assert renamed.keys() != stored.keys()
    folder = write_folder(tmp_path / "model", config, renamed)
    assert plain_names(Shards(folder).tensors, folder) == dict(zip(renamed, stored, strict=True))
    assert set(open_conversion(folder).infos)


@pytest.mark.parametrize("wrapper", ["torch.compile", "DDP", "PEFT"])
def test_openai_s_layout_is_known_in_a_wrapper(tmp_path, wrapper):
    config = CONFIGS["gpt_oss"]
    weights = draw(config)
    stored = {WRAPPERS[wrapper](name): each for name, each in layouts.original(weights, config).items()}
    conversion = open_conversion(write_folder(tmp_path / "model", layouts.original_config(config), stored))
    assert_same_bits(decoded(conversion.config, dict(conversion.tensors())), layouts.mxfp4_values(weights))


def test_a_wrapped_model_has_the_same_weights(tmp_path):
    config = CONFIGS["qwen3_moe"]
    weights = draw(config)
    stored = {f"module.{name}": tensor for name, tensor in layouts.hub(weights, config).items()}
    conversion = open_conversion(write_folder(tmp_path / "model", config, stored))
    assert_same_bits(decoded(conversion.config, dict(conversion.tensors())), weights)


@pytest.mark.parametrize("layout", list(CONFIGS))
def test_macmoe_s_own_names_stay_as_they_are(tmp_path, layout):
    names = list(shapes(CONFIGS[layout]))
    assert plain_names(names, tmp_path) == {name: name for name in names}
    tied = [name for name in names if not name.startswith("lm_head.")]
    assert plain_names(tied, tmp_path, tied=True) == {name: name for name in tied}


def test_a_tied_model_may_be_stored_under_the_name_of_its_head(tmp_path):
    """As save_model of safetensors does, which keeps one name of what is shared."""
    config = CONFIGS["qwen3"] | {"tie_word_embeddings": True}
    weights = draw(config)
    stored = layouts.hub(weights, config)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    conversion = open_conversion(write_folder(tmp_path / "model", config, stored))
    assert conversion.config["tie_word_embeddings"] is True
    assert_same_bits(decoded(conversion.config, dict(conversion.tensors())), weights)


@pytest.mark.parametrize("end", ["base_layer.weight", "lora_A.default.weight", "lora_magnitude_vector"])
def test_an_adapter_among_the_weights_is_named(tmp_path, end):
    with pytest.raises(ConversionError, match=r"an adapter that is not merged into the weights.*--adapter"):
        plain_names([*NAMES, f"base_model.model.model.layers.0.self_attn.q_proj.{end}"], tmp_path)


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["module.", "base_model.model."]), st.sets(st.sampled_from(NAMES), min_size=1, max_size=3)
)
def test_two_ways_of_naming_at_once_are_refused(tmp_path_factory, prefix, some):
    names = [prefix + name if name in some else name for name in NAMES]
    with pytest.raises(ConversionError, match="named in another way than the others"):
        plain_names(names, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", ["_orig_mod.lm_head.weight", "layers.0.mlp.up_proj.weight"])
def test_one_tensor_under_two_names_is_refused(tmp_path, name):
    with pytest.raises(ConversionError, match=r"named in another way than the others.*save the model again"):
        plain_names([*NAMES, name], tmp_path)


def test_decoded_experts_may_have_the_names_of_their_blocks(tmp_path):
    """As save_pretrained of transformers 5.23 names them after it has decoded MXFP4."""
    config = CONFIGS["gpt_oss"]
    weights = draw(config)
    matrices = ("experts.gate_up_proj", "experts.down_proj")
    stored = {
        f"{name}_blocks" if name.endswith(matrices) else name: each
        for name, each in layouts.dequantized(weights, config).items()
    }
    assert sum(name.endswith("_blocks") for name in stored) == 2 * config["num_hidden_layers"]
    conversion = open_conversion(write_folder(tmp_path / "model", config, stored))
    assert_same_bits(decoded(conversion.config, dict(conversion.tensors())), weights)
