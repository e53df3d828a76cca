"""A model that is planned before it is here has the shapes and packings that it will have."""

from __future__ import annotations

import json

import pytest

from macmoe.checkpoint import parameters_of
from macmoe.errors import CheckpointError
from macmoe.tuning import planned
from macmoe.tuning.planned import open_planned
from tests.assets.build import HUB


def described(each):
    return {name: (array.shape, array.dtype) for name, array in parameters_of(each.model).items()}


@pytest.mark.parametrize("name", ["gpt_oss", "qwen3", "gpt_oss:8bit", "qwen3:4bit", "deepseek_v3:6bit"])
def test_shapes_and_packings_are_known_without_a_copy(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder, _, recipe = name.partition(":")
    config = json.loads((HUB / folder / "config.json").read_text())
    monkeypatch.setattr(planned, "published_config", lambda _: config)
    here, away = open_planned(f"{HUB / name}"), open_planned(f"owner/name{recipe and ':' + recipe}")
    assert described(away) == described(here)
    assert away.family == here.family


def test_a_name_that_nobody_knows_is_refused():
    with pytest.raises(CheckpointError, match=r"did you mean 'gpt-oss-20b'"):
        open_planned("gpt-oss-21b")
