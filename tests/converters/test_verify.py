"""A written folder is proved tensor by tensor; whatever is not as it has to be is found."""

from __future__ import annotations

import json
import random

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from macmoe.config import Quantization
from macmoe.errors import CheckpointError
from macmoe.shards import Shards
from macmoe_converters import RECIPES, open_conversion
from macmoe_converters.verify import bound, claims, verify
from tests.conftest import ROOT
from tests.converters import layouts
from tests.converters.samples import CONFIGS, draw, u8, write_folder
from tests.converters.test_recipes import wide_folder

HUB = ROOT / "tests" / "assets" / "hub"


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_is_proved(tmp_path, recipe):
    folder = wide_folder(tmp_path / "model", "qwen3_moe")
    conversion = open_conversion(folder, recipe=recipe)
    conversion.write(tmp_path / "out")
    proof = verify(open_conversion(folder, recipe=recipe), tmp_path / "out")
    assert proof.equal + proof.within == len(conversion.parameters)
    assert (proof.within > 0) == (recipe != "keep")


def damage(out, name, change):
    """Change one tensor and make the recorded hash fit."""
    (file,) = out.glob("*.safetensors")
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file(tensors, file)
    marker = json.loads((out / "macmoe.json").read_text())
    (out / "macmoe.json").write_text(json.dumps(marker | {"sha256": {}}))


def flip(array):
    array = array.copy()
    array.reshape(-1).view(np.uint8)[5] ^= 0x40
    return array


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("model.layers.1.mlp.experts.down_proj.weight", "keep"),
        ("model.layers.0.mlp.experts.gate_up_proj.scales", "keep"),
        ("model.layers.0.mlp.experts.gate_up_proj.scales", "8bit"),
    ],
)
def test_one_changed_bit_of_a_repack_is_found(tmp_path, name, recipe):
    config = CONFIGS["gpt_oss"] | {"torch_dtype": "float32"}
    weights = layouts.mxfp4(draw(config), config)
    folder = write_folder(tmp_path / "model", config, {key: as_f32(value) for key, value in weights.items()})
    open_conversion(folder, recipe=recipe).write(tmp_path / "out")
    damage(tmp_path / "out", name, flip)
    with pytest.raises(CheckpointError, match=f"{name} differs from its source in bytes"):
        verify(open_conversion(folder, recipe=recipe), tmp_path / "out")


def as_f32(stored):
    """Store bfloat16 as float32, which numpy's safetensors can read."""
    if stored.dtype != "BF16":
        return stored
    wide = (stored.array.astype(np.uint32) << 16).view(np.float32)
    return type(stored)(dtype="F32", array=wide)


@pytest.mark.parametrize("to", ["macmoe", "hub", "mlx-lm"])
@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "deepseek_v3"])
def test_every_tensor_of_a_source_is_counted_once(tmp_path, family, to):
    config = CONFIGS[family] | {"tie_word_embeddings": family == "qwen3"}
    stored = (layouts.mxfp4 if family == "gpt_oss" else layouts.hub)(draw(config), config)
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = u8(np.zeros(4, np.uint8))
    if family == "qwen3":
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    conversion = open_conversion(write_folder(tmp_path / "model", config, stored))
    conversion.write(tmp_path / "out", to=to)
    account = verify(conversion, tmp_path / "out", to=to).account
    listed = [*account.equal, *account.within, *account.copies, *account.left_out]
    assert sorted(listed) == sorted(stored)
    assert account.total == len(stored)
    assert account.left_out.pop("model.layers.0.self_attn.rotary_emb.inv_freq") == (
        "rotary tables are computed from config.json"
    )
    copied = {"qwen3": ["lm_head.weight"], "gpt_oss": []}.get(family) or [
        f"model.layers.2.{name}.weight" for name in ("embed_tokens", "shared_head.head") if family[0] == "d"
    ]
    assert sorted(account.copies) == copied
    prediction = {name for name in stored if name.startswith("model.layers.2.")} - set(copied)
    assert account.left_out.keys() == (prediction if to == "mlx-lm" else set())


LAYOUTS = [("hub", "keep"), ("mlx-lm", "keep"), ("mlx-lm", "4bit"), ("mlx-lm", "nvfp4")]


@pytest.mark.parametrize(("to", "recipe"), LAYOUTS)
@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "deepseek_v3"])
def test_other_layouts_are_proved_and_one_changed_bit_is_found(tmp_path, family, to, recipe):
    conversion, out = open_conversion(HUB / family, recipe=recipe), tmp_path / "out"
    conversion.write(out, to=to)
    proof = verify(conversion, out, to=to)
    assert (proof.within > 0) == (recipe != "keep")
    expected = list(claims(conversion, to))
    assert proof.equal + proof.within == len(expected)
    shards = Shards(out)
    exact = [name for claim in expected if claim.exact is None for name in claim.arrays]
    for name in random.Random(0).sample(exact, 5):
        flip_in_file(shards, name)
        with pytest.raises(CheckpointError, match=f"{name} differs from its source"):
            verify(conversion, out, to=to)
        flip_in_file(shards, name)
    packed = [name for claim in expected if claim.exact is not None for name in list(claim.arrays)[:1]]
    for name in packed[:3]:
        flip_in_file(shards, name, mask=0xFF, size=shards.tensors[name].nbytes)
        with pytest.raises(CheckpointError, match="is further from its source"):
            verify(conversion, out, to=to)
        flip_in_file(shards, name, mask=0xFF, size=shards.tensors[name].nbytes)
    assert verify(conversion, out, to=to) == proof


def flip_in_file(shards, name, mask=0x40, size=1):
    """Change a tensor on the disk, from its first byte on; twice is not at all."""
    raw = shards.read_bytes(name, 0, size) ^ np.uint8(mask)
    for path in shards.files.values():
        begin = offset_of(path, name)
        if begin is not None:
            with path.open("r+b") as file:
                file.seek(begin)
                file.write(raw.tobytes())


def offset_of(path, name):
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + length]).get(name)
    return 8 + length + entry["data_offsets"][0] if entry else None


@pytest.mark.parametrize("to", ["hub", "mlx-lm"])
def test_changed_config_is_found(tmp_path, to):
    conversion, out = open_conversion(HUB / "gpt_oss"), tmp_path / "out"
    conversion.write(out, to=to)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"swiglu_limit": 6.0}))
    with pytest.raises(CheckpointError, match="was not made of"):
        verify(conversion, out, to=to)


def test_codes_beyond_the_error_of_their_packing_are_found(tmp_path):
    config = CONFIGS["qwen3"]
    tensors = {key: as_f32(value) for key, value in layouts.hub(draw(config), config).items()}
    folder = write_folder(tmp_path / "model", config, tensors)
    open_conversion(folder, recipe="8bit").write(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    damage(tmp_path / "out", name, lambda codes: codes ^ np.uint32(0x80))
    with pytest.raises(CheckpointError, match=f"{name} is further from its source than affine may be"):
        verify(open_conversion(folder, recipe="8bit"), tmp_path / "out")


def test_folder_of_another_recipe_is_refused(tmp_path):
    folder = wide_folder(tmp_path / "model", "qwen3_moe")
    open_conversion(folder, recipe="4bit").write(tmp_path / "out")
    with pytest.raises(CheckpointError, match="was not made of"):
        verify(open_conversion(folder, recipe="8bit"), tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(
        [("affine", 64, bits) for bits in (2, 3, 4, 5, 6, 8)]
        + [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)]
    ),
    st.floats(-6, 3),
)
def test_mlx_stays_within_the_bounds(seed, mode, magnitude):
    how = Quantization(mode=mode[0], group_size=mode[1], bits=mode[2])
    rng = np.random.default_rng(seed)
    scale = 10.0 ** (
        magnitude if how.mode != "nvfp4" else min(max(magnitude, -1), 1)
    )  # without a global scale
    values = (rng.standard_t(4, (8, 128)) * scale).astype(np.float32)
    packing = {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
    parts = mx.quantize(mx.array(values), **packing)
    found = np.array(mx.dequantize(*parts, **packing, dtype=mx.float32))
    groups = values.reshape(-1, how.group_size)
    error = np.sqrt(np.square(groups - found.reshape(groups.shape)).mean(axis=-1))
    assert np.all(error <= bound(how, groups) * 1.5)
    assert not np.all(error <= bound(how, groups) / 50)
