"""`macmoe completion`: the scripts are click's, and what they ask for is answered."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.testing import CliRunner

from macmoe.cli import COMMANDS, cli

SHELLS = ("bash", "fish", "zsh")


def completed(words: str) -> list[str]:
    """Return what fish would offer behind these words."""
    *_, last = words.split(" ")
    asked = {"_MACMOE_COMPLETE": "fish_complete", "COMP_WORDS": words, "COMP_CWORD": last}
    lines = CliRunner().invoke(cli, env=asked, prog_name="macmoe").stdout.splitlines()
    return [line.split(",", 1)[1].split("\t")[0] for line in lines if line.startswith("plain,")]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_what_click_makes(macmoe, shell):
    result = macmoe("completion", shell)
    expected = CliRunner().invoke(cli, env={"_MACMOE_COMPLETE": f"{shell}_source"}, prog_name="macmoe")
    assert result.exit_code == 0
    assert result.stdout == expected.stdout
    assert "_MACMOE_COMPLETE=" in result.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_it(macmoe, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = macmoe("completion", shell).stdout
    subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_commands_and_options_are_completed():
    assert completed("macmoe ") == list(COMMANDS)
    assert completed("macmoe gen") == ["generate"]
    assert completed("macmoe lora p") == ["preview", "plan"]
    assert "--thinking-budget" in completed("macmoe generate --thinking-")


def test_an_unknown_shell_is_wrong_usage(macmoe):
    assert macmoe("completion", "tcsh").exit_code == 2


@pytest.mark.parametrize(
    "words", ["generate --model", "inspect", "score", "bench", "score tiny:qwen3 --against"]
)
def test_models_are_completed(words):
    assert "gpt-oss-20b" in completed(f"macmoe {words} gpt-")
