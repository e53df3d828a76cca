"""Figures of a run in TensorBoard's files and at Weights & Biases."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from macmoe.errors import UsageError
from macmoe.tuning.trackers import open_trackers
from tests.tuning.test_trainer import trainer


def events(folder: Path) -> list[tuple[int, str, float]]:
    """Return the scalars of event files: length, checksum, protocol buffer, checksum, again and again."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return found


def test_tensorboard_has_the_figures_of_the_metrics(tmp_path: Path):
    run = trainer("qwen3", tmp_path, steps=2, evaluate_every=1, trackers=("tensorboard",))
    run.run()
    found = {(step, name): value for step, name, value in events(tmp_path / "tensorboard")}
    for line in run.metrics.lines():
        for name in line.keys() - {"step", "steps"}:
            assert found[line["step"], name] == pytest.approx(line[name], rel=1e-6), name


class FakeRun:
    """Remembers what was logged."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.lines, self.finished = settings, [], False

    def log(self, figures: dict[str, float], *, step: int) -> None:
        self.lines.append((step, figures))

    def finish(self) -> None:
        self.finished = True


def test_weights_and_biases_gets_the_figures_and_a_resumed_run_its_own(tmp_path: Path, monkeypatch):
    runs: list[FakeRun] = []
    fake = SimpleNamespace(init=lambda **settings: runs.append(FakeRun(**settings)) or runs[-1])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = trainer("qwen3", tmp_path, steps=2, evaluate_every=2, trackers=("wandb",))
    run.run()
    trainer("qwen3", tmp_path, steps=2, evaluate_every=2, trackers=("wandb",)).resume()
    first, second = runs
    assert [step for step, _ in first.lines] == [1, 2, 2]
    assert first.lines[0][1]["loss"] == run.metrics.lines()[0]["loss"]
    assert first.finished
    assert first.settings["id"] == second.settings["id"]
    assert second.settings["resume"] == "allow"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wandb", r"wandb needs wandb, which is not installed: pip install 'macmoe\[wandb\]'"),
        (
            "tensorbord",
            "'tensorbord' is no tracker; there are tensorboard, wandb; did you mean 'tensorboard'",
        ),
    ],
)
def test_a_tracker_that_is_missing_or_unknown_is_one_line(tmp_path: Path, monkeypatch, name: str, words: str):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=words):
        open_trackers([name], tmp_path)
