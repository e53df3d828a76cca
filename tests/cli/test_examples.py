"""The examples at the end of each command's help work as they are printed."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from macmoe.cli import cli

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


def examples(group: click.Group) -> Iterator[str]:
    """Yield the examples of all commands."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from examples(command)
        yield from (line for line in (command.epilog or "").splitlines() if line.startswith("macmoe "))


EXAMPLES = list(examples(cli))


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_help_works(macmoe, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = [STAND_INS.get(word, word) for word in shlex.split(example)[1:]]
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


def test_there_are_examples():
    assert {example.split()[2] for example in EXAMPLES} >= {"train", "plan", "fuse", "export", "import"}
