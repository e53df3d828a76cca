"""Every example runs, on its own, and prints something."""

from __future__ import annotations

import subprocess
import sys

import pytest

from macmoe.tools import load_tools
from tests.conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path):
    run = subprocess.run([sys.executable, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_the_example_of_tools_can_be_given_to_a_chat(capfd):
    assert [tool.name for tool in load_tools(ROOT / "examples" / "tools.py")] == ["weather"]
    assert capfd.readouterr().out == ""
