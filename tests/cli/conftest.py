"""Running the command line inside the test process."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from macmoe.cli import cli
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.conftest import ROOT

SCRIPTED = str(ROOT / "tests" / "cli" / "scripted_chat.py")


@pytest.fixture(autouse=True)
def _chosen_model(monkeypatch):
    """Let the built-in model be chosen, so that no line says what it is; `test_model.py` does without."""
    monkeypatch.setenv("MACMOE_MODEL", "tiny:qwen3")


@pytest.fixture
def macmoe():
    """Return a function that runs `macmoe ARGUMENTS` and gives its exit code, stdout and stderr."""

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin, prog_name="macmoe")

    return run


@pytest.fixture
def terminal(tmp_path):
    """Return a function that runs `macmoe chat ARGUMENTS` with a scripted model on a terminal."""

    def run(scenario, *arguments):
        chat = PseudoTerminal(SCRIPTED, scenario, "chat", *arguments, XDG_CONFIG_HOME=str(tmp_path))
        chat.expect("Ctrl-D leaves.")
        return chat

    return run
