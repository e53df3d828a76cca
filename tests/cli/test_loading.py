"""Stages of opening a model, each with a bar of its own."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from macmoe.checkpoint import load_weights, parameters_of
from macmoe.cli import loading
from macmoe.families import family_of
from macmoe.loading import open_weights
from tests.assets.build import HUB


def test_a_stage_ends_the_bar_of_the_one_before(monkeypatch):
    seen: list[object] = []

    @contextmanager
    def progress_bar(label, *, in_bytes):
        assert in_bytes
        seen.append(f"{label} begins")
        yield lambda *step: seen.append((label, *step))
        seen.append(f"{label} ends")

    monkeypatch.setattr(loading, "progress_bar", progress_bar)
    with loading.stages() as stage:
        converting, reading = stage("converting"), stage("loading")
        converting(1, 2)
        converting(2, 2)
        reading(1, 1)
    assert seen == [
        "converting begins",
        ("converting", 1, 2),
        ("converting", 2, 2),
        "converting ends",
        "loading begins",
        ("loading", 1, 1),
        "loading ends",
    ]


@pytest.mark.parametrize("folder", [HUB / "qwen3", HUB.parents[2] / "macmoe" / "assets" / "qwen3"], ids=str)
def test_loading_tells_how_many_bytes_are_there(folder, monkeypatch):
    monkeypatch.setattr("macmoe.checkpoint.BATCH_BYTES", 1 << 19)
    source = open_weights(folder)
    model = family_of(source.config, "x").build(source.config, "x")
    steps: list[tuple[int, int]] = []
    load_weights(model, source, progress=lambda *step: steps.append(step))
    total = sum(array.nbytes for array in parameters_of(model).values())
    assert steps[0] == (0, total)
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert len(steps) > 3
