"""`macmoe cache`, and what the commands say about conversions on first use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from macmoe.converted import Note, write_note
from macmoe.kept import matching
from macmoe_converters import open_conversion
from tests import fake_hub
from tests.assets.build import HUB
from tests.conftest import ROOT

REPO = "Qwen/Qwen3-0.6B"
ASK = ("generate", "What is 17 + 25?", "--temperature", "0", "--json", "--model", str(HUB / "qwen3"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MACMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MACMOE_CACHE_FROM", "0")
    return tmp_path / "cache"


def test_first_use_is_announced_and_the_second_is_quiet(macmoe, cache):
    first, second = macmoe(*ASK), macmoe(*ASK)
    assert f"converting it once, into {cache}" in first.stderr
    assert second.stderr == ""
    assert json.loads(first.stdout)["answer"] == json.loads(second.stdout)["answer"] != ""


def test_converted_models_are_listed_and_removed(macmoe, cache):
    macmoe(*ASK)
    (name,) = (path.name for path in cache.iterdir())
    head, row = macmoe("cache", "list").stdout.splitlines()
    assert head.split()[0] == "name"
    assert row.split()[0] == name
    assert row.split()[-1] == str(cache / name)
    (entry,) = json.loads(macmoe("cache", "list", "--json").stdout)
    weights = HUB / "qwen3" / "model.safetensors"
    assert (entry["name"], entry["source"], entry["recipe"]) == (name, str(HUB / "qwen3"), "keep")
    assert entry["source_bytes"] > weights.stat().st_size
    assert macmoe("cache", "remove", name[:7]).exit_code == 0
    assert macmoe("cache", "list").stdout == ""
    assert macmoe("cache", "remove", name).exit_code == 1
    assert list(cache.iterdir()) == []


def test_all_are_removed_only_when_asked(macmoe, cache):
    macmoe(*ASK)
    assert macmoe("cache", "remove").exit_code == 2
    assert len(list(cache.iterdir())) == 1
    assert macmoe("cache", "remove", "--all").exit_code == 0
    assert list(cache.iterdir()) == []


def keep(cache, name, recipe="keep", source=REPO):
    """Put a conversion into the cache folder."""
    open_conversion(HUB / "qwen3", recipe=recipe).write(cache / name)
    write_note(cache / name, Note(source=source, recipe=recipe, converted="2026-01-02T03:04:05+00:00"))


def test_a_short_name_or_a_begin_means_a_model_if_it_is_the_only_one(macmoe, cache):
    keep(cache, "Qwen--Qwen3-0.6B-1")
    assert [entry.name for entry in matching("qwen3-0.6b")] == ["Qwen--Qwen3-0.6B-1"]
    keep(cache, "Qwen--Qwen3-0.6B-2", "4bit")
    result = macmoe("cache", "remove", "qwen3-0.6b")
    assert (result.exit_code, "means several models" in result.stderr) == (1, True)
    assert macmoe("cache", "remove", "Qwen--Qwen3-0.6B-2").exit_code == 0
    row = macmoe("cache", "list").stdout.splitlines()[1].split()
    assert row[3:7] == ["keep", "2026-01-02", REPO, "gone"]


def test_a_source_that_is_a_folder_is_not_removed(macmoe, cache):
    macmoe(*ASK)
    (name,) = (path.name for path in cache.iterdir())
    result = macmoe("cache", "remove", name, "--source")
    assert (result.exit_code, "a folder of yours" in result.stderr) == (1, True)
    assert (cache / name).is_dir()
    assert macmoe("cache", "remove", "--all", "--source").exit_code == 0
    assert list(cache.iterdir()) == []
    assert (HUB / "qwen3" / "model.safetensors").is_file()


def test_pull_fetches_and_converts_and_later_commands_ask_nobody(tmp_path, cache):
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}

    def run(*arguments):
        command = (sys.executable, "-m", "macmoe", *arguments)
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    with fake_hub.running() as hub:
        hub.repos[REPO] = HUB / "qwen3"
        environment["HF_ENDPOINT"] = hub.address
        pulled = run("pull", "qwen3-0.6b", "--quantize", "4bit")
        assert pulled.returncode == 0, pulled.stderr
        assert "downloading" in pulled.stderr
        assert "converting it once, into" in pulled.stderr
        (folder,) = cache.iterdir()
        assert pulled.stdout.strip() == str(folder)
        hub.requests.clear()
        answered = run("generate", "What is 17 + 25?", "--model", "qwen3-0.6b:4bit", "--max-tokens", "3")
        assert (answered.returncode, hub.requests) == (0, [])
        assert "converting" not in answered.stderr
        snapshots = tmp_path / "home" / "hub" / "models--Qwen--Qwen3-0.6B"
        removed = run("cache", "remove", "qwen3-0.6b", "--source")
        assert removed.returncode == 0, removed.stderr
        assert (snapshots.exists(), list(cache.iterdir())) == (False, [])
        offline = run("generate", "hi", "--model", "qwen3-0.6b", "--offline")
        assert (offline.returncode, hub.requests) == (1, [])
        assert "no copy is on this machine" in offline.stderr


def test_weights_whose_links_broke_are_repaired_by_the_command_that_is_named(macmoe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / "abc"
    shutil.copytree(HUB / "qwen3", snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blob")
    result = macmoe("generate", "hi", "--model", str(snapshot))
    assert (result.exit_code, "`macmoe pull owner/tiny`" in result.stderr) == (1, True)
