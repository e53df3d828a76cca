"""What the README shows is what the commands print."""

from __future__ import annotations

import re
import shlex

import pytest
from click.testing import CliRunner

from macmoe.cli import cli
from scripts.macs import BEGIN, END, table
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Commands with the output that follows them; those that show none need models of the reader's.
SHOWN = re.findall(r"```console\n\$ macmoe ([^\n]+)\n((?!```|\$ ).+?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize(("arguments", "output"), SHOWN, ids=[arguments for arguments, _ in SHOWN])
def test_command_prints_what_is_shown(arguments, output):
    result = CliRunner().invoke(cli, shlex.split(arguments.removesuffix(" 2>/dev/null")))
    assert (result.exit_code, result.stdout) == (0, output)


def test_there_are_commands_with_output():
    assert {arguments.split()[0] for arguments, _ in SHOWN} == {"generate"}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z]+)", README):
        assert f"\n{target}:" in makefile


def test_python_code_is_an_example():
    (code,) = re.findall(r"```python\n((?!```).+?)```", README, flags=re.DOTALL)
    assert (ROOT / "examples" / "generate.py").read_text(encoding="utf-8").endswith(code)


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_table_of_macs_is_what_the_estimate_says():
    shown = README.partition(BEGIN)[2].partition(END)[0]
    assert shown == table(), "stale; `make docs` writes it"


def test_it_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 150
