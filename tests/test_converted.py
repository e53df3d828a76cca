"""A model in another layout is converted once, into the cache folder, and found there again."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

import macmoe
from macmoe import converted
from macmoe.checkpoint import is_macmoe_folder
from macmoe.errors import CheckpointError, UsageError
from macmoe.location import ASSETS, cache_folder
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
    (entry,) = converted.entries()
    assert not entry.finished
    assert converted.ready(source) == cache / entry.name
    assert [entry.finished for entry in converted.entries()] == [True]


def test_stopped_conversion_needs_room_for_the_rest_only(cache, source, monkeypatch):
    def stop_late(done, total):
        if done > 0.8 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted.ready(source, stop_late)
    (entry,) = converted.entries()
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
    assert converted.entries() == []


@pytest.mark.usefixtures("cache")
def test_macmoe_folder_is_ready():
    assert converted.ready(ASSETS / "qwen3") == ASSETS / "qwen3"


@pytest.mark.usefixtures("cache")
def test_full_disk_is_no_reason_not_to_load(source, monkeypatch, caplog):
    leave(monkeypatch, 1000)
    assert converted.ready(source) == source
    assert "has no room" in caplog.text


@pytest.mark.usefixtures("cache")
def test_damaged_source_leaves_nothing(source):
    (source / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        converted.ready(source)
    assert converted.entries() == []


def test_entries_are_removed_by_name(cache, source):
    folder = converted.ready(source)
    draft_folder(folder).mkdir()
    assert converted.remove(folder.name) > 1_000_000
    assert list(cache.iterdir()) == []
    with pytest.raises(UsageError, match="macmoe cache list"):
        converted.remove(folder.name)


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
