"""`macmoe convert owner/name`: what is downloaded from a hub, and what is said when that does not work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import fake_hub
from tests.conftest import ROOT
from tests.converters import layouts
from tests.converters.samples import CONFIGS, draw, write_folder

WEIGHTS = "model.safetensors"
SOURCE = ROOT / "tests" / "assets" / "hub" / "qwen3"
REPO = "owner/tiny"


@pytest.fixture
def hub(tmp_path):
    """A hub with a model, beside which lies what nobody needs."""
    folder = tmp_path / "repo"
    shutil.copytree(SOURCE, folder)
    (folder / "original").mkdir()
    for name in (
        "original/model.safetensors",
        "pytorch_model.bin",
        "modeling.py",
        "consolidated.safetensors",
    ):
        (folder / name).write_bytes(b"not needed")
    with fake_hub.running() as server:
        server.repos[REPO] = folder
        yield server


def run(hub, tmp_path, *arguments, offline=False, repo=REPO):
    """Run a command with this hub, and an empty or earlier cache of its own."""
    environment = os.environ | {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "MACMOE_CACHE": "off",
    }
    command = (sys.executable, "-m", "macmoe", "convert", repo, *arguments)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_what_is_needed_is_downloaded_and_converted(hub, tmp_path, macmoe):
    result = run(hub, tmp_path, "--out", str(tmp_path / "out"))
    assert result.returncode == 0, result.stderr
    download, done = result.stderr.splitlines()  # no bars where nobody sees them
    assert re.search(r"owner/tiny: downloading [\d.]+ MiB into .*hub \([\d.]+ GiB free\)", download)
    assert "tensors" in done
    served = {name for name, _ in hub.served}
    weights = {path.name for path in SOURCE.glob("*.safetensors")}
    assert {name for name in served if name.endswith(".safetensors")} == weights
    assert not any(name.endswith((".bin", ".py")) for name in served)
    macmoe("convert", str(SOURCE), "--out", str(tmp_path / "expected"))
    for path in (tmp_path / "expected").glob("model*"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    marker = (tmp_path / "out" / "macmoe.json").read_text()
    assert f'"source": "{REPO}@{fake_hub.COMMIT}"' in marker


def test_a_second_run_downloads_nothing_and_needs_no_network(hub, tmp_path):
    assert run(hub, tmp_path, "--dry-run").returncode == 0
    hub.served.clear()
    hub.requests.clear()
    assert run(hub, tmp_path, "--dry-run").returncode == 0
    assert hub.requests == []
    assert run("http://127.0.0.1:9", tmp_path, "--dry-run").returncode == 0
    assert run(hub, tmp_path, "--dry-run", offline=True).returncode == 0
    assert hub.served == []


def test_a_broken_download_is_continued(hub, tmp_path):
    config = CONFIGS["qwen3"] | {"vocab_size": 200_000}  # more than the library writes at a time
    hub.repos[REPO] = write_folder(tmp_path / "large", config, layouts.hub(draw(config), config))
    size = (hub.repos[REPO] / WEIGHTS).stat().st_size
    hub.broken[WEIGHTS] = [size // 2]
    assert run(hub, tmp_path, "--dry-run").returncode == 0
    first, second = (begin for name, begin in hub.served if name == WEIGHTS)
    assert first == 0
    assert size // 4 < second <= size // 2


def test_after_a_download_that_failed_only_what_is_missing_is_downloaded(hub, tmp_path):
    hub.broken[WEIGHTS] = [1000] * 20
    first = run(hub, tmp_path, "--dry-run")
    assert first.returncode == 1
    assert "the same command continues it" in first.stderr.splitlines()[-1]
    assert "Traceback" not in first.stderr
    hub.broken.clear()
    hub.served.clear()
    assert run(hub, tmp_path, "--dry-run").returncode == 0
    assert [name for name, _ in hub.served] == [WEIGHTS]


def test_an_incomplete_copy_is_not_used_without_a_network(hub, tmp_path):
    assert run(hub, tmp_path, "--dry-run").returncode == 0
    (copy,) = (tmp_path / "home").rglob("snapshots/*/model.safetensors")
    copy.unlink()
    result = run(hub, tmp_path, "--dry-run", offline=True)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "the copy on this machine is not complete" in result.stderr
    assert run(hub, tmp_path, "--dry-run").returncode == 0


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        ("owner/missing", "the hub has no such model, or it is private"),
        ("owner/gated", "access must be asked for on its page"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, repo, message):
    hub.gated.add("owner/gated")
    result = run(hub, tmp_path, "--dry-run", repo=repo)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert repo in result.stderr


def test_no_network_and_no_copy_is_one_line(tmp_path):
    result = run("http://127.0.0.1:9", tmp_path, "--dry-run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "the hub cannot be reached and no copy is on this machine" in result.stderr


def test_being_offline_by_wish_is_said(tmp_path):
    result = run("http://127.0.0.1:9", tmp_path, "--dry-run", offline=True)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "HF_HUB_OFFLINE" in result.stderr
