"""Where a model is found, and what is said when it is not."""

from __future__ import annotations

import pytest

from macmoe.errors import CheckpointError
from macmoe.location import BUILT_IN, find_model


def test_a_folder_is_itself(tmp_path):
    assert find_model(str(tmp_path)) == tmp_path


def test_unknown_built_in_model_names_the_ones_there_are():
    with pytest.raises(CheckpointError, match="tiny:qwen: no such built-in model") as caught:
        find_model("tiny:qwen")
    assert all(name in str(caught.value) for name in BUILT_IN)
    assert "did you mean 'tiny:qwen3'?" in str(caught.value)


@pytest.mark.parametrize("name", ["missing", "a/b/c", "/no/such/folder", "../x", "no such name"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="not a model folder"):
        find_model(name)


def test_an_empty_name_is_refused():
    with pytest.raises(CheckpointError, match="empty name"):
        find_model("")


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="not a model folder"):
        find_model(str(tmp_path / "model.safetensors"))


def test_hub_model_without_network_is_one_line():
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set and no copy") as caught:
        find_model("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.gguf", "GGUF, the format of llama.cpp.*convert the safetensors model"),
        ("adapter_config.json", "a LoRA adapter of PEFT or mlx-lm.*`--adapter`"),
        ("adapter.json", "a LoRA adapter of macmoe.*`--adapter`"),
    ],
)
def test_what_is_taken_for_a_model_is_called_by_its_name(tmp_path, file, message):
    (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=message) as caught:
        find_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_gguf_file_is_called_by_its_name(tmp_path):
    (tmp_path / "model-Q4_K.gguf").touch()
    with pytest.raises(CheckpointError, match="GGUF, the format of llama"):
        find_model(str(tmp_path / "model-Q4_K.gguf"))
