"""Paths on the command line: `~` is expanded in every one, also where no shell does it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from macmoe.cli import cli
from macmoe.cli.paths import UserPath
from scripts.reference import all_commands
from tests.conftest import ROOT

HUB = ROOT / "tests" / "assets" / "hub" / "qwen3"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Make a folder the home folder, and work in another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_every_path_is_of_the_kind_that_expands_it():
    kinds = [parameter.type for _, command in all_commands(cli) for parameter in command.params]
    paths = [kind for kind in kinds if isinstance(kind, click.Path | click.File)]
    assert len(paths) > 15
    assert all(isinstance(kind, UserPath) for kind in paths)


def test_no_folder_is_called_tilde(macmoe, home):
    result = macmoe("convert", str(HUB), "--out=~/made", "--report=~/report.json")
    assert (result.exit_code, (home / "made" / "config.json").is_file()) == (0, True)
    assert (home / "report.json").is_file()
    assert list(Path().iterdir()) == []


def test_folders_around_a_file_are_made(macmoe, tmp_path):
    deep = tmp_path / "not" / "there"
    answered = macmoe("generate", "What is 1 + 2?", "--temperature", "0", "--cache", str(deep / "a.cache"))
    assert (answered.exit_code, (deep / "a.cache").is_file()) == (0, True)
    report, plot = deep / "more" / "report.json", deep / "drawn" / "bits.png"
    out = ("--out", str(tmp_path / "made"), "--report", str(report), "--plot", str(plot))
    assert macmoe("convert", str(HUB), *out).exit_code == 0
    assert (report.is_file(), plot.is_file()) == (True, True)


def test_files_are_read_there(macmoe, home):
    (home / "text").write_text("What is 17 + 25?")
    assert macmoe("score", "tiny:qwen3", "--file=~/text").exit_code == 0
    (home / "tools.json").write_text("{}")
    assert str(home / "tools.json") in macmoe("generate", "Hi", "--tools=~/tools.json").stderr
    plan = ("lora", "plan", "--config=~/run.toml", "--json")
    assert macmoe(*plan).stderr == f"error: {home / 'run.toml'}: no such file\n"
    (home / "run.toml").write_text('model = "tiny:qwen3"\n')
    assert json.loads(macmoe(*plan).stdout)["trainable"] > 0


def test_an_unknown_user_is_one_line(macmoe):
    result = macmoe("convert", str(HUB), "--out=~nobody-here/x")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "there is no user 'nobody-here'" in result.stderr
