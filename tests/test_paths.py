"""`~` in paths that no shell has seen: the same as the shell would make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import macmoe
from macmoe.errors import UsageError
from macmoe.paths import expand_home
from macmoe.tuning.config import read_run
from macmoe.tuning.data import find_files
from macmoe.tuning.verifiers import open_verifier


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Make a folder the home folder, and work in another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "home"


def test_only_a_leading_tilde_is_a_home_folder(home):
    for path, expanded in [("~", home), ("~/a b", home / "a b"), (Path("~/x"), home / "x")]:
        assert expand_home(path) == expanded
    for path in ("a/~/b", "./~", "x~", "/~", "", "-"):
        assert expand_home(path) == Path(path)


def test_a_user_that_is_not_there_makes_no_folder():
    with pytest.raises(UsageError, match=r"~nobody-here/x: there is no user 'nobody-here'; write \./~nobody"):
        expand_home("~nobody-here/x")
    Path("~nobody-here").mkdir()  # an odd name that somebody chose
    assert expand_home("~nobody-here/x") == Path("~nobody-here/x")


def test_settings_of_a_run_may_begin_with_it(home):
    Path("run.toml").write_text('model = "tiny:qwen3"\nout = "~/adapter"\n[data]\ndata = "~/rows.jsonl"\n')
    options = read_run(Path("run.toml"), {})
    assert options.out == home / "adapter"
    (home / "rows.jsonl").touch()
    assert find_files(options.data.data) == {"train": [home / "rows.jsonl"]}


def test_a_verifier_may_lie_there(home):
    (home / "right.py").write_text("def right(answer, reference):\n    return answer == '42'\n")
    assert open_verifier("~/right.py:right").accepts("42", None)


def test_python_takes_it_as_text(home):
    conversation = macmoe.load("tiny:qwen3").chat()
    conversation.save("~/chat.json")
    assert json.loads((home / "chat.json").read_text())["messages"] == []
    conversation.load("~/chat.json")
    with pytest.raises(UsageError, match=str(home / "adapter")):
        macmoe.load("tiny:qwen3", adapter="~/adapter")
