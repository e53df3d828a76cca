"""Running the command line inside the test process."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from macmoe.cli import cli


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
