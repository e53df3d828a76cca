"""Which model answers where none is given, and what is said of the built-in one."""

from __future__ import annotations

import json

import pytest

from macmoe.cli.model import BUILT_IN_MODEL, INTRODUCTION, complete

ASK = ("generate", "What is 17 + 25?", "--temperature", "0", "--max-tokens", "1")


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch):
    monkeypatch.delenv("MACMOE_MODEL", raising=False)


def test_the_built_in_model_says_what_it_is_where_none_was_chosen(macmoe, monkeypatch):
    assert macmoe(*ASK).stderr.splitlines()[0] == INTRODUCTION
    assert INTRODUCTION in macmoe("chat", stdin="").stderr
    assert INTRODUCTION not in macmoe(*ASK, "--model", BUILT_IN_MODEL).stderr
    monkeypatch.setenv("MACMOE_MODEL", BUILT_IN_MODEL)
    assert INTRODUCTION not in macmoe(*ASK).stderr


def test_it_says_nothing_in_json_and_on_stdout(macmoe):
    assert macmoe(*ASK, "--json").stderr == ""
    assert INTRODUCTION not in macmoe(*ASK).stdout


@pytest.mark.parametrize("command", [ASK, ("chat",), ("lora", "preview", "rows.jsonl")])
def test_the_variable_names_the_default(macmoe, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.setenv("MACMOE_MODEL", "tiny:nothing")
    assert "tiny:nothing: no such built-in model" in macmoe(*command, stdin="").stderr
    assert macmoe(*command, "--model", BUILT_IN_MODEL, stdin="").exit_code == 0
    monkeypatch.setenv("MACMOE_MODEL", "")  # set to nothing is not set
    assert macmoe(*command, stdin="").exit_code == 0


def test_it_is_the_last_to_name_the_model_of_a_run(macmoe, monkeypatch, tmp_path):
    (tmp_path / "run.toml").write_text('model = "tiny:qwen3"\n')
    given = macmoe("lora", "plan", "--json", "--model", "tiny:gpt-oss").stdout
    monkeypatch.setenv("MACMOE_MODEL", "tiny:gpt-oss")
    named = macmoe("lora", "plan", "--json").stdout
    in_file = macmoe("lora", "plan", "--json", "--config", str(tmp_path / "run.toml")).stdout
    assert json.loads(named) == json.loads(given) != json.loads(in_file)


def test_names_are_completed():
    offered = [item.value for item in complete(None, None, "gpt")]
    assert {"gpt-oss-20b", "gpt-oss-120b"} <= set(offered)
    assert [item.type for item in complete(None, None, "my-mod")] == ["dir"]
    assert [item.value for item in complete(None, None, "tiny:q")] == [BUILT_IN_MODEL, "tiny:q"]
