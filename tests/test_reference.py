"""The pages of docs/ that are written from the code, and the one that lists environment variables."""

from __future__ import annotations

import re

import pytest

import macmoe
from scripts.reference import DOCS, PAGES, entry, markdown
from tests.conftest import ROOT

# A variable: named where the environment is read, or spelled as one of those.
READ = re.compile(r"""environ(?:\.\w+\(|\[)["']([A-Z_0-9]+)["']|["']((?:MACMOE|HF_HUB)_[A-Z_0-9]+)["']""")
OF_THE_HUB = {"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name):
    stale = f"docs/{name} is stale: `make docs` writes it again"
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), stale


def test_every_public_name_is_described():
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    names = [name for name in macmoe.__all__ if not name.startswith("__")]
    assert [name for name in names if f"\n### {name}\n" not in page] == []


def test_every_environment_variable_is_listed_and_no_other():
    listed = set(re.findall(r"`([A-Z_0-9]{6,})`", (DOCS / "environment.md").read_text(encoding="utf-8")))
    sources = [
        path.read_text(encoding="utf-8")
        for root in ("macmoe", "converters")
        for path in (ROOT / root).rglob("*.py")
    ]
    read = {name for source in sources for found in READ.findall(source) for name in found if name}
    assert read - listed == set()
    assert listed - read - OF_THE_HUB == set()


def test_a_docstring_becomes_a_list():
    def example(a: int, *, b: str = "x") -> str | None:
        """Do something.

        More of it.

        Args:
            a: One thing,
                or another.
            b: A text.

        Raises:
            ValueError: Always.
        """

    assert markdown(example) == (
        "Do something.\n\nMore of it.\n\n**Args**\n\n- `a`: One thing,\n  or another.\n- `b`: A text.\n\n"
        "**Raises**\n\n- `ValueError`: Always.\n"
    )
    assert "macmoe.example(a: int, *, b: str = 'x') -> str | None\n" in entry("example", example)
