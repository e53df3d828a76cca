"""From a name to a folder that loads: what is asked of whom, and what is refused before it is begun."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

import macmoe
from macmoe import converted, opening
from macmoe.checkpoint import parameters_of
from macmoe.device import RESERVE
from macmoe.downloads import Listing
from macmoe.errors import CheckpointError, MemoryLimitError, UsageError
from macmoe.inspection import published_config
from macmoe.memory import CONTEXT, Estimator
from macmoe.opening import Wish, prepare, pull, split_recipe
from macmoe.session import load_model
from macmoe_converters import open_conversion
from tests.assets.build import HUB

GIB = 2**30


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A hub whose repositories have 57 GiB of weights; what is asked of it is noted."""
    asked: list[str] = []

    def listing(repo, _):
        asked.append(f"sizes of {repo}")
        return Listing(sizes={"model.safetensors": 57 * GIB, "config.json": 500}, missing=57 * GIB)

    def download(repo, files):
        asked.append(f"{len(files)} kinds of files of {repo}")
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / "model.safetensors").touch()
        (tmp_path / "copy" / "config.json").write_text(json.dumps(published_config("qwen3-30b-a3b")))
        return tmp_path / "copy"

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MACMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "listing", listing)
    monkeypatch.setattr(opening, "download", download)
    monkeypatch.setattr("macmoe.downloads.free_at", lambda _: 100 * GIB)
    for place in ("macmoe.memory", "macmoe.device", "macmoe.opening"):
        monkeypatch.setattr(f"{place}.memory_limit", lambda: 24 * GIB)
    return asked


def test_what_does_not_fit_is_refused_before_it_is_downloaded(asked):
    with pytest.raises(MemoryLimitError, match=r"--quantize \S+ would .*--force tries"):
        prepare("qwen3-30b-a3b")
    assert asked == ["sizes of Qwen/Qwen3-30B-A3B"]


def test_the_recipe_that_is_named_fits_and_keeps_more_than_the_others_that_fit(asked):
    with pytest.raises(MemoryLimitError) as caught:
        prepare("qwen3-30b-a3b")
    named = str(caught.value).partition("--quantize ")[2].split()[0]
    estimator = Estimator(published_config("qwen3-30b-a3b"), "x")
    largest = estimator.need(named).total
    assert estimator.need("4bit").total <= largest <= 24 * GIB
    prepare(f"qwen3-30b-a3b:{named}")
    assert "kinds of files of Qwen/Qwen3-30B-A3B" in asked[-1]


@pytest.mark.parametrize("wish", [Wish(force=True), Wish(recipe="4bit")])
def test_a_fitting_recipe_or_force_lets_it_be_downloaded(asked, wish):
    lines: list[str] = []
    prepare("qwen3-30b-a3b", Wish(recipe=wish.recipe, force=wish.force, announce=lines.append))
    assert asked[0] == "sizes of Qwen/Qwen3-30B-A3B"
    assert asked[-1].endswith("kinds of files of Qwen/Qwen3-30B-A3B")
    assert "downloading 57.0 GiB into" in lines[0]
    assert "100.0 GiB free" in lines[0]
    assert wish.force or lines[0].endswith("of memory")


def test_an_unknown_repository_is_judged_by_its_config(asked):
    with pytest.raises(MemoryLimitError, match="owner/name: does not fit"):
        prepare("owner/name")
    assert asked == ["sizes of owner/name", "1 kinds of files of owner/name"]


def test_a_full_disk_is_said_before_the_download(asked, monkeypatch):
    monkeypatch.setattr("macmoe.downloads.free_at", lambda _: GIB)
    with pytest.raises(CheckpointError, match=r"57.0 GiB to download into .* and 1.0 GiB free.*HF_HOME"):
        prepare("owner/name", Wish(recipe="4bit"))
    assert not any("5 kinds" in line for line in asked)


def test_a_conversion_is_used_without_its_source_and_the_hub(asked, tmp_path):
    folder = tmp_path / "cache" / "Q--T-0"
    open_conversion(HUB / "qwen3").write(folder)
    note = converted.Note(source="Q/T", recipe="keep", converted="2026-01-01")
    converted.write_note(folder, note)
    assert prepare("Q/T").folder == folder
    assert macmoe.load("q/t").model is not None
    assert asked == []


def test_pull_asks_the_hub_and_needs_it(asked, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="so the hub cannot be asked"):
        pull("gpt-oss-20b", Wish())
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    pull("gpt-oss-20b", Wish(force=True))
    assert asked[0] == "sizes of openai/gpt-oss-20b"


@pytest.mark.parametrize(
    ("name", "recipe", "expected"),
    [
        ("qwen3-30b-a3b:4bit", None, ("qwen3-30b-a3b", "4bit")),
        ("owner/name", "mxfp4", ("owner/name", "mxfp4")),
        ("tiny:qwen3", None, ("tiny:qwen3", "keep")),
        ("tiny:qwen3:8bit", "8bit", ("tiny:qwen3", "8bit")),
        ("gpt-oss:20b", None, ("gpt-oss:20b", "keep")),
    ],
)
def test_a_recipe_may_stand_behind_the_name(name, recipe, expected):
    assert split_recipe(name, recipe) == expected


@pytest.mark.parametrize(("name", "recipe"), [("a:4bit", "8bit"), ("a", "9bit"), ("a", "dwq4")])
def test_a_recipe_that_makes_no_sense_is_refused(name, recipe):
    with pytest.raises(UsageError, match="recipe"):
        split_recipe(name, recipe)


def test_a_small_model_is_packed_while_it_is_loaded(tmp_path):
    open_conversion(HUB / "gpt_oss", recipe="4bit").write(tmp_path / "out")
    expected = parameters_of(load_model(tmp_path / "out")[1])
    found = parameters_of(macmoe.load(HUB / "gpt_oss", quantize="4bit").model)
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name], equal_nan=True) for name in expected)


def test_an_estimate_is_weights_cache_and_a_reserve():
    need = Estimator(published_config("gpt-oss-20b"), "x").need("8bit")
    on_cpu = 2 if mx.default_device() == mx.Device(mx.cpu) else 1
    assert need.cache == on_cpu * (24_576 * CONTEXT + 3 * 2**20)
    assert need.total == need.weights + need.cache + RESERVE


@pytest.mark.parametrize("recipe", ["4bit", "8bit", "experts3-rest8", "mixed4-6"])
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3", "deepseek_v3"])
def test_estimated_weights_are_those_of_the_conversion(family, recipe):
    conversion = open_conversion(HUB / family, recipe=recipe)
    config = json.loads((HUB / family / "config.json").read_text())
    stored = sum(info.nbytes * (2 if info.dtype == "BF16" else 1) for info in conversion.infos.values())
    assert Estimator(config, "x").need(recipe).weights == pytest.approx(stored, rel=0.12)


@pytest.mark.parametrize(
    ("file", "message"),
    [("pytorch_model.bin", "the weights are pickles"), ("a.txt", "no model.*safetensors")],
)
def test_a_folder_without_weights_is_called_so_before_a_tokenizer_is_asked_for(tmp_path, file, message):
    (tmp_path / "config.json").write_text((HUB / "qwen3" / "config.json").read_text())
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=message):
        macmoe.load(tmp_path)


def test_an_original_folder_is_not_judged_by_a_config_that_it_does_not_have(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "surely_fits", lambda *_, **__: False)
    (tmp_path / "config.json").write_text('{"rope_ntk_alpha": 1.0}')
    (tmp_path / "model.safetensors").touch()
    assert prepare(str(tmp_path)).folder == tmp_path


def test_offline_without_a_copy_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set and no copy"):
        prepare("gpt-oss-20b")
    assert list(Path(tmp_path).iterdir()) == []
