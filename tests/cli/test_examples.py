"""The examples at the end of each command's help are right, and those of fine-tuning work as printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import click
import pytest

from macmoe.cli import cli
from macmoe.cli.examples import EXAMPLES
from scripts.reference import all_commands

STAND_INS = {"Qwen/Qwen3-30B-A3B": "tiny:qwen3"}  # for models on the hub
SETTINGS = """
model = "{model}"
out = "adapters/chats"
[data]
data = "chats.jsonl"
max_length = 128
[train]
steps = 2
warmup = 0
learning_rate = 0.02
"""
RUN = ("lora train", "lora plan", "lora fuse", "lora export", "lora import")
COMMANDS = dict(all_commands(cli))


def words_of(example: str) -> list[str]:
    """Return the arguments of the macmoe that an example runs."""
    (inner,) = re.findall(r"macmoe ([^|)<>]+)", example)
    return shlex.split(inner)


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_shows_its_examples(macmoe, path):
    expected = EXAMPLES[path.removeprefix("macmoe").strip()]
    assert expected
    _, _, shown = macmoe(*path.split()[1:], "--help").stdout.partition("Examples:\n")
    assert [line.strip() for line in shown.splitlines()] == list(expected)
    assert max(map(len, expected)) <= 96


@pytest.mark.parametrize("path", COMMANDS)
def test_an_example_is_one_of_the_command_and_parses(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES[path.removeprefix("macmoe").strip()]:
        command, words = cli, words_of(example)
        for name in [word for word in words if Path(word).suffix in {".txt", ".jsonl", ".toml", ".py"}]:
            Path(name).touch()
        while isinstance(command, click.Group):
            command, words = command.get_command(click.Context(command), words[0]), words[1:]
        assert command is not None
        command.make_context("example", words).close()
    assert any(f"{path} " in f"{example} " for example in EXAMPLES[path.removeprefix("macmoe").strip()])


@pytest.mark.parametrize("example", [example for name in RUN for example in EXAMPLES[name]])
def test_an_example_of_fine_tuning_works(macmoe, example: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [STAND_INS.get(word, word) for word in words_of(example)]
    named = dict(pairwise(words))
    model = named.get("--model", "tiny:qwen3")
    rows = [{"prompt": f"What is {i} + 1?", "completion": f"{i + 1}"} for i in range(6)]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.toml").write_text(SETTINGS.format(model=model))
    assert macmoe("lora", "train", "--config", "run.toml").exit_code == 0
    export = ("lora", "export", "adapters/chats", "--model", model, "--out", "chats-peft")
    assert macmoe(*export).exit_code == 0
    shutil.rmtree(named.get("--out", "nothing"), ignore_errors=True)
    shorter = ("--max-length", "64") if "--data" in named else ()  # full rows take a CPU a minute
    result = macmoe(*words, *shorter)
    assert result.exit_code == 0, result.stderr
