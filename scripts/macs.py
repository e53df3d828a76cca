#!/usr/bin/env python
"""Write the README's table of models, recipes and Macs, computed as `macmoe inspect` computes sizes.

`make docs` runs it; a test fails while the table is not what it would write.
"""

from __future__ import annotations

from pathlib import Path

from macmoe.device import USABLE
from macmoe.inspection import find_config
from macmoe.memory import KEEP, Estimator, Need

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- macs: written by `make docs` -->\n", "<!-- macs: end -->\n"
MACS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)  # GB of memory that Macs are sold with
MODELS = (
    "qwen3-8b",
    "gpt-oss-20b",
    "qwen3-30b-a3b",
    "qwen3-32b",
    "gpt-oss-120b",
    "qwen3-235b-a22b",
    "deepseek-v3.1",
)
RECIPES = {KEEP: "as published", "8bit": "8bit", "4bit": "4bit", "experts3-rest8": "experts3-rest8"}
GPU_BITS = 16  # of a weight that is not packed


def usable(gigabytes: int) -> float:
    """Return the bytes that macmoe uses of a Mac: a share of what macOS lets a GPU have by default."""
    share = 2 / 3 if gigabytes <= 36 else 3 / 4
    return gigabytes * 2**30 * share * USABLE


def cell(need: Need) -> str:
    """Return the size of the weights, and the smallest Mac on which they fit."""
    mac = next((f" on {mac} GB" for mac in MACS if need.total <= usable(mac)), ", none")
    return f"{need.weights / 1e9:.0f} GB{mac}"


def table() -> str:
    """Return the table as markdown, one row a model."""
    rows = [["model", *RECIPES.values()], ["---"] * (len(RECIPES) + 1)]
    for name in MODELS:
        estimator = Estimator(find_config(name)[0], name, GPU_BITS)
        rows.append([f"`{name}`", *(cell(estimator.need(recipe)) for recipe in RECIPES)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Put the table into the README."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
