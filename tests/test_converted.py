"""A model in another layout is converted once, into the cache folder, and found there again."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest

import macmoe
from macmoe import converted, kept
from macmoe.checkpoint import is_macmoe_folder
from macmoe.config import load_json
from macmoe.errors import CheckpointError, UsageError
from macmoe.location import ASSETS, cache_folder
from macmoe_converters import open_conversion
from macmoe_converters.draft import draft_folder
from macmoe_converters.sink import HEADROOM
from tests.assets.build import HUB


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Use a cache folder of our own, for models of any size."""
    monkeypatch.setenv("MACMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MACMOE_CACHE_FROM", "0")
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    """A hub folder that a test may change."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (HUB / "qwen3").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def leave(monkeypatch, free):
    """Let every disk have so many free bytes."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))


def test_model_is_converted_once(cache, source):
    steps = []
    first = converted.ready(source, lambda *step: steps.append(step))
    assert is_macmoe_folder(first)
    assert first.parent == cache
    assert steps
    steps.clear()
    assert converted.ready(source, lambda *step: steps.append(step)) == first
    assert steps == []


@pytest.mark.usefixtures("cache")
def test_session_of_a_converted_model_answers_as_its_source(source):
    def answer():
        session = macmoe.load(source)
        events = list(session.generate("What is 17 + 25?", temperature=0, max_tokens=64))
        return events[:-1]

    kept = answer()
    os.environ["MACMOE_CACHE"] = "off"
    assert answer() == kept


@pytest.mark.usefixtures("cache")
def test_changed_source_is_converted_again(source):
    first = converted.ready(source)
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert converted.ready(source) != first


def test_stopped_conversion_is_continued(cache, source):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted.ready(source, stop)
    (entry,) = kept.entries()
    assert not entry.finished
    assert converted.ready(source) == cache / entry.name
    assert [entry.finished for entry in kept.entries()] == [True]


def test_stopped_conversion_needs_room_for_the_rest_only(cache, source, monkeypatch):
    def stop_late(done, total):
        if done > 0.8 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted.ready(source, stop_late)
    (entry,) = kept.entries()
    rest = (source / "model.safetensors").stat().st_size - entry.nbytes
    leave(monkeypatch, rest + HEADROOM + 10_000)
    assert converted.ready(source) == cache / entry.name


def test_nothing_is_kept_of_small_models_or_where_it_is_not_wanted(cache, source, monkeypatch):
    monkeypatch.delenv("MACMOE_CACHE_FROM")
    assert converted.ready(source) == source
    monkeypatch.setenv("MACMOE_CACHE_FROM", "0")
    monkeypatch.setenv("MACMOE_CACHE", "off")
    assert converted.ready(source) == source
    assert not cache.exists()
    assert kept.entries() == []


@pytest.mark.usefixtures("cache")
def test_macmoe_folder_is_ready():
    assert converted.ready(ASSETS / "qwen3") == ASSETS / "qwen3"


@pytest.mark.usefixtures("cache")
def test_full_disk_is_no_reason_not_to_load(source, monkeypatch, caplog):
    leave(monkeypatch, 1000)
    assert converted.ready(source) == source
    assert "has no room" in caplog.text
    assert "MACMOE_CACHE" in caplog.text


@pytest.mark.parametrize("failure", ["a file in the way", "a failing disk"])
def test_unwritable_cache_is_no_reason_not_to_load(cache, source, monkeypatch, caplog, failure):
    if failure == "a file in the way":
        cache.write_text("")
    else:

        def fail(*_, **__):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr("macmoe_converters.draft.Draft.open", fail)
    assert converted.ready(source) == source
    assert str(cache) in caplog.text
    assert "MACMOE_CACHE names another folder" in caplog.text
    assert len(caplog.records) == 1


def count_reads(monkeypatch):
    """Count how often a file of weights is opened."""
    read: list[object] = []
    for place in ("macmoe.shards", "macmoe.converted"):
        monkeypatch.setattr(f"{place}.read_header", read.append)
    return read


@pytest.mark.usefixtures("cache")
def test_conversion_is_found_without_opening_the_source(source, monkeypatch):
    first = converted.ready(source)
    read = count_reads(monkeypatch)
    assert converted.ready(source) == first
    assert read == []


@pytest.mark.usefixtures("cache")
def test_conversion_is_found_when_the_weights_of_its_source_are_gone(source, monkeypatch):
    first = converted.ready(source)
    (source / "model.safetensors").unlink()
    monkeypatch.chdir(source.parent)
    assert macmoe.load(source.name).model is not None
    assert converted.find(str(source), source) == first
    shutil.rmtree(source)
    assert converted.find(str(source), None) == first
    assert converted.find(str(source), None, "4bit") is None


@pytest.mark.usefixtures("cache")
def test_each_recipe_has_a_conversion_of_its_own(source):
    four = converted.ready(source, recipe="4bit")
    assert four != converted.ready(source)
    assert load_json(four / "macmoe.json")["recipe"] == "4bit"
    assert {(entry.recipe, entry.source) for entry in kept.entries()} == {
        (recipe, str(source)) for recipe in ("4bit", "keep")
    }


@pytest.mark.usefixtures("cache")
def test_changed_config_is_converted_again(source):
    first = converted.ready(source)
    path = source / "config.json"
    path.write_text(path.read_text() + "\n")
    assert converted.ready(source) != first


@pytest.mark.parametrize(("family", "in_place"), [("qwen3", True), ("gpt_oss", True), ("deepseek_v3", False)])
def test_mlx_folder_is_used_where_it_lies_unless_it_is_computed_anew(cache, tmp_path, family, in_place):
    folder = tmp_path / "mlx"
    open_conversion(HUB / family, recipe="4bit").write(folder, to="mlx-lm")
    assert (converted.ready(folder) == folder) == in_place
    assert cache.exists() != in_place


@pytest.mark.usefixtures("cache")
def test_damaged_source_leaves_nothing(source):
    (source / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        converted.ready(source)
    assert kept.entries() == []


def test_entries_are_removed_by_name(cache, source):
    folder = converted.ready(source)
    draft_folder(folder).mkdir()
    assert kept.remove(folder.name) > 1_000_000
    assert list(cache.iterdir()) == []
    with pytest.raises(UsageError, match="macmoe cache list"):
        kept.remove(folder.name)


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("darwin", {}, "Library/Caches/macmoe"),
        ("linux", {}, ".cache/macmoe"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/macmoe"),
        ("darwin", {"MACMOE_CACHE": "/y"}, "/y"),
    ],
)
def test_cache_folder_is_where_the_system_keeps_them(tmp_path, monkeypatch, platform, environment, expected):
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MACMOE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == tmp_path / expected
