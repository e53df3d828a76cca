"""Pointers of Git LFS are called by their name, whatever file they stand for."""

from __future__ import annotations

import json
import shutil

import pytest

from macmoe.adapters.opening import open_adapter
from macmoe.config import load_config
from macmoe.errors import ConfigError, DatasetError, MacmoeError, UsageError
from macmoe.files import refuse_pointer
from macmoe.session import load, load_model
from macmoe.shards import INDEX
from macmoe.tuning.data import read_dataset
from tests.conftest import ROOT

HUB = ROOT / "tests" / "assets" / "hub"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 2577408\n"
NAMED = "a pointer of Git LFS.*git lfs pull"


@pytest.fixture
def model(tmp_path):
    """Return a copy of a model folder, an index included."""
    folder = shutil.copytree(HUB / "qwen3", tmp_path / "model")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "model.safetensors"}}))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        INDEX,
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ],
)
def test_a_file_of_a_model_that_is_a_pointer_is_named(model, name):
    (model / name).write_text(POINTER)
    with pytest.raises(MacmoeError, match=f"{name}: {NAMED}") as caught:
        assert load(str(model)).defaults  # generation_config.json is read where an answer is sampled
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("adapter.json", {}),
        ("adapter.safetensors", {"adapter.json": {"format_version": 1, "family": "qwen3", "matrices": {}}}),
        ("adapter_config.json", {}),
        (
            "adapter_model.safetensors",
            {"adapter_config.json": {"peft_type": "LORA", "r": 8, "lora_alpha": 16}},
        ),
        ("adapters.safetensors", {"adapter_config.json": {"lora_parameters": {"scale": 1.0}}}),
    ],
)
def test_a_file_of_an_adapter_that_is_a_pointer_is_named(tmp_path, name, others):
    for other, data in others.items():
        (tmp_path / other).write_text(json.dumps(data))
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(MacmoeError, match=f"{name}: {NAMED}"):
        open_adapter(tmp_path, load_model(HUB / "qwen3")[1], "qwen3")


@pytest.mark.parametrize("name", ["train.jsonl", "train.ndjson", "train.json", "train.parquet"])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_data_that_are_a_pointer_are_named_and_not_skipped(tmp_path, name, skip_bad):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(DatasetError, match=f"{name}: {NAMED}"):
        read_dataset(str(tmp_path / name), skip_bad=skip_bad)


def test_other_files_and_missing_ones_pass(tmp_path):
    (tmp_path / "text").write_text(f"A file that begins otherwise.\n{POINTER}")
    (tmp_path / "empty").touch()
    for name in ("text", "empty", "nothing", "."):
        refuse_pointer(tmp_path / name)


def test_the_error_is_that_of_the_reader(tmp_path):
    (tmp_path / "config.json").write_text(POINTER)
    with pytest.raises(ConfigError, match=NAMED):
        load_config(tmp_path)
    with pytest.raises(UsageError, match=NAMED):
        refuse_pointer(tmp_path / "config.json", UsageError)
