"""Where a model is found, and what is said when it is not."""

from __future__ import annotations

import json

import pytest

from macmoe.errors import CheckpointError
from macmoe.hub_cache import complete_snapshot
from macmoe.location import BUILT_IN, EVERYTHING, find_model


def model_in(folder, *names):
    """Make a folder that looks like one of a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors", *names):
        (folder / name).write_text("{}")
    return folder


def test_a_folder_is_itself(tmp_path):
    assert find_model(str(model_in(tmp_path))) == tmp_path


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = model_in(tmp_path / "a")
    assert find_model("~/a") == folder


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


def test_a_file_of_weights_means_its_folder(tmp_path):
    (tmp_path / "other.safetensors").touch()
    with pytest.raises(CheckpointError, match="not a model folder"):
        find_model(str(tmp_path / "other.safetensors"))
    model_in(tmp_path)
    assert find_model(str(tmp_path / "model.safetensors")) == tmp_path


@pytest.mark.parametrize(
    ("file", "message"),
    [("m.zip", "archive; unpack it"), ("m.tar.gz", "archive; unpack it"), ("pytorch_model.bin", "a pickle")],
)
def test_what_cannot_be_a_model_says_what_it_is(tmp_path, file, message):
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=message):
        find_model(str(tmp_path / file))
    with pytest.raises(CheckpointError, match=message.split()[0]):
        find_model(str(tmp_path))


def hub_copy(root, repo="Q/T", commit="abc", *, weights=True):
    """Make the hub's cache folder of a repository, with links to blobs."""
    folder = root / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for name in ("config.json", "tokenizer.json", *(["model.safetensors"] if weights else [])):
        blob = folder / "blobs" / f"{commit}-{name}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_text("{}")
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder


def test_a_folder_of_the_hubs_cache_means_the_snapshot_of_main(tmp_path):
    hub_copy(tmp_path, commit="new")
    folder = hub_copy(tmp_path, commit="old")
    (folder / "refs" / "main").write_text("new")
    for name in (folder, folder / "snapshots"):
        assert find_model(str(name)) == folder / "snapshots" / "new"


def test_a_folder_above_models_names_them(tmp_path):
    model_in(tmp_path / "lmstudio" / "org" / "one")
    model_in(tmp_path / "lmstudio" / "org" / "two")
    hub_copy(tmp_path / "hub", "Qwen/Qwen3-8B")
    for name, expected in (("lmstudio", "org/one.*org/two"), ("hub", "Qwen/Qwen3-8B; name one")):
        with pytest.raises(CheckpointError, match=rf"models lie below it: .*{expected}"):
            find_model(str(tmp_path / name))


def test_an_empty_folder_is_called_one(tmp_path):
    with pytest.raises(CheckpointError, match="an empty folder"):
        find_model(str(tmp_path))


def test_a_broken_link_is_named_with_its_repair(tmp_path):
    folder = hub_copy(tmp_path)
    (folder / "blobs" / "abc-model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .* gone; `macmoe pull Q/T`"):
        find_model(str(folder))


def test_a_copy_in_the_hubs_cache_is_used_if_it_is_complete(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = hub_copy(tmp_path)
    assert find_model("Q/T") == folder / "snapshots" / "abc"
    trees = folder / "trees"
    trees.mkdir()
    (trees / "abc.json").write_text(
        json.dumps({"files": {"config.json": {}, "vocab.json": {}, "a/b.json": {}}})
    )
    assert complete_snapshot("Q/T", EVERYTHING) is None
    assert find_model("Q/T", files=("config.json",)) == folder / "snapshots" / "abc"


@pytest.mark.parametrize("missing", ["model-00002-of-00002.safetensors", "tokenizer.json", "config.json"])
def test_a_copy_without_a_file_that_every_model_has_is_incomplete(tmp_path, monkeypatch, missing):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = hub_copy(tmp_path, weights=False) / "snapshots" / "abc"
    for part in ("00001", "00002"):
        (snapshot / f"model-{part}-of-00002.safetensors").touch()
    assert complete_snapshot("Q/T", EVERYTHING) == snapshot
    (snapshot / missing).unlink()
    assert complete_snapshot("Q/T", EVERYTHING) is None


def test_a_whole_model_beside_an_adapter_wins(tmp_path, caplog):
    caplog.set_level("INFO")
    assert find_model(str(model_in(tmp_path, "adapter_config.json"))) == tmp_path
    assert "without the adapter beside it" in caplog.text


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
