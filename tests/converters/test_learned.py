"""Learned scales predict more like the model that was packed, and are written as they are."""

from __future__ import annotations

import json
import sys

import mlx.core as mx
import numpy as np
import pytest

from macmoe.checkpoint import load_weights
from macmoe.errors import CheckpointError, ConversionError, UsageError
from macmoe.families import family_of
from macmoe.session import load_model
from macmoe.shards import Shards
from macmoe_converters import learned as learning
from macmoe_converters import open_conversion
from macmoe_converters.learned import learn
from macmoe_converters.verify import verify
from tests.converters import layouts
from tests.converters.samples import CONFIGS, draw, write_folder
from tests.converters.test_recipes import WIDE, wide_folder
from tests.converters.test_verify import flip_in_file

LAYOUTS = {"gpt_oss": layouts.mxfp4}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(learning, "STEPS", 20)


def passages(seed, count=24, length=16):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 64, (count, length)).tolist()


def calm_folder(folder, family):
    """Write a model whose predictions do not hang on every bit: its matrices are an eighth of the usual."""
    config = CONFIGS[family] | WIDE[family]
    weights = {name: each / 8 if each.ndim > 1 else each for name, each in draw(config).items()}
    return write_folder(folder, config, LAYOUTS.get(family, layouts.hub)(weights, config))


def loaded(conversion):
    model = family_of(conversion.config).build(conversion.config)
    load_weights(model, conversion)
    return model


@pytest.mark.parametrize(
    "family", [name if name == "qwen3_moe" else pytest.param(name, marks=pytest.mark.long) for name in WIDE]
)
def test_learned_scales_are_closer_to_the_model_on_text_they_never_saw(tmp_path, family):
    folder, out = calm_folder(tmp_path / "model", family), tmp_path / "out"
    teacher = load_model(folder)[1]
    packed = open_conversion(folder, recipe="4bit")
    scales = learn(teacher, loaded(packed), passages(0))
    assert scales
    taught = open_conversion(folder, recipe="dwq4", learned=scales)
    taught.write(out)
    assert json.loads((out / "macmoe.json").read_text())["recipe"] == "dwq4"
    before, after = (
        learning._divergence(teacher, load_model(each)[1] if each == out else loaded(packed), passages(1))
        for each in (None, out)
    )
    assert after < 0.95 * before
    codes = [name for name in packed.infos if name.endswith(".weight")]
    first, second = dict(packed.tensors()), dict(taught.tensors())
    assert [name for name in codes if not mx.array_equal(first[name], second[name])] == []
    assert taught.infos == packed.infos


def test_what_was_learned_is_proved(tmp_path):
    folder, out = wide_folder(tmp_path / "model", "qwen3_moe"), tmp_path / "out"
    packed = open_conversion(folder, recipe="4bit")
    names = [name for name in packed.infos if name.endswith((".scales", ".biases"))]
    changed = {name: dict(packed.tensors())[name] * 1.01 for name in names}
    taught = open_conversion(folder, recipe="dwq4", learned=changed)
    taught.write(out)
    verify(taught, out)
    shards = Shards(out)
    flip_in_file(shards, names[3])
    (out / "macmoe.json").write_text(
        json.dumps(json.loads((out / "macmoe.json").read_text()) | {"sha256": {}})
    )
    with pytest.raises(CheckpointError, match=f"{names[3]} differs"):
        verify(taught, out)


def test_scales_of_another_model_are_refused(tmp_path):
    folder = wide_folder(tmp_path / "model", "qwen3_moe")
    wrong = {"model.layers.0.self_attn.q_proj.scales": mx.zeros((3, 3))}
    with pytest.raises(ConversionError, match="was learned for another model"):
        open_conversion(folder, recipe="dwq4", learned=wrong)


def test_missing_mlx_lm_says_so(tmp_path, monkeypatch):
    folder = wide_folder(tmp_path / "model", "qwen3_moe")
    monkeypatch.setitem(sys.modules, "mlx_lm.quant.dwq", None)  # other tests may have imported its parents
    with pytest.raises(UsageError, match="learns with mlx-lm; install it"):
        learn(load_model(folder)[1], load_model(folder)[1], passages(0))


def test_a_single_passage_is_too_little(tmp_path):
    model = load_model(wide_folder(tmp_path / "model", "qwen3_moe"))[1]
    with pytest.raises(UsageError, match="give a longer one"):
        learn(model, model, passages(0, count=1))


def test_learning_that_does_not_help_changes_nothing(tmp_path, monkeypatch, caplog):
    folder = wide_folder(tmp_path / "model", "qwen3_moe")
    monkeypatch.setattr(learning, "STEP_SHARE", 10.0)
    packed = open_conversion(folder, recipe="4bit")
    assert learn(load_model(folder)[1], loaded(packed), passages(0)) == {}
    assert "learning did not help" in caplog.text
