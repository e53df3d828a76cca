"""Every recipe in every layout for every family: whoever the folder is for loads it, or it is refused."""

from __future__ import annotations

import json
import warnings

import mlx.core as mx
import numpy as np
import pytest

from macmoe.errors import UsageError
from macmoe.session import load_model
from macmoe.shards import Shards
from macmoe_converters import KEEP, RECIPES, open_conversion
from macmoe_converters.verify import verify
from tests.converters import layouts
from tests.converters.samples import CONFIGS, draw, write_folder

SOURCES = {
    "qwen3": layouts.hub,
    "qwen3_moe": layouts.hub,
    "gpt_oss": layouts.dequantized,
    "deepseek_v3": layouts.hub,
}
TOKENS = mx.array([[5, 17, 42, 3, 60, 33]])


@pytest.fixture(scope="module")
def mlx_lm():
    """The peer; importing it lowers a limit of the process and warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlx_lm import utils
    return utils


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a function that writes a model once; mlx-lm rounds the ends of YaRN's range whatever it says."""
    folder = tmp_path_factory.mktemp("sources")

    def write(family):
        config = CONFIGS[family]
        if family == "gpt_oss":
            config = config | {"rope_scaling": config["rope_scaling"] | {"truncate": True}}
        if not (folder / family).exists():
            write_folder(folder / family, config, SOURCES[family](draw(config), config))
        return folder / family

    return write


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", SOURCES)
def test_mlx_lm_loads_every_recipe_and_computes_the_same(tmp_path, mlx_lm, source, family, recipe):
    open_conversion(source(family), recipe=recipe).write(tmp_path / "out", to="mlx-lm")
    tensors = Shards(tmp_path / "out").tensors
    wide = [name for name, info in tensors.items() if info.dtype == "F32"]  # only what the source has so
    assert [name for name in wide if not name.endswith("correction_bias")] == []
    model, _ = mlx_lm.load_model(tmp_path / "out")
    model.set_dtype(mx.float32)
    found, expected = np.array(model(TOKENS)), np.array(load_model(tmp_path / "out", "float32")[1](TOKENS))
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, float(expected.std())))


@pytest.mark.parametrize("family", SOURCES)
def test_nvfp4_for_mlx_lm_has_no_global_scales_and_is_proved(tmp_path, source, family):
    conversion = open_conversion(source(family), recipe="nvfp4")
    conversion.write(tmp_path / "out", to="mlx-lm")
    assert verify(conversion, tmp_path / "out", to="mlx-lm").within
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    packed = [how for how in config["quantization"].values() if isinstance(how, dict)]
    assert {how["mode"] for how in packed} == {"affine", "nvfp4"}
    assert [how for how in packed if "global_scale" in how] == []
    assert [name for name in Shards(tmp_path / "out").tensors if "global_scale" in name] == []


@pytest.mark.parametrize("family", SOURCES)
def test_what_was_packed_with_global_scales_is_packed_without_if_asked(tmp_path, mlx_lm, source, family):
    open_conversion(source(family), recipe="nvfp4").write(tmp_path / "macmoe")
    again = open_conversion(tmp_path / "macmoe", recipe="nvfp4")
    again.write(tmp_path / "out", to="mlx-lm")
    verify(again, tmp_path / "out", to="mlx-lm")
    assert mlx_lm.load_model(tmp_path / "out")[0](TOKENS).shape == (1, 6, 64)


@pytest.mark.parametrize("recipe", [each for each in RECIPES if each != KEEP])
def test_the_hub_s_layout_takes_no_recipe(source, recipe):
    with pytest.raises(UsageError, match="no packings of MLX"):
        open_conversion(source("qwen3"), recipe=recipe).output(to="hub")
