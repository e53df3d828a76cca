"""Ctrl-C at any moment of a run: the last whole update is saved, and the run ends as if nothing had been."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macmoe.adapters.files import read_adapter
from macmoe.tuning.interrupts import Interrupts
from macmoe.tuning.metrics import METRICS
from macmoe.tuning.run_state import STATE
from macmoe.tuning.trainer import Trainer
from tests.tuning.test_trainer import factors, same, trainer, without_times

SETTINGS: dict[str, Any] = {"steps": 4, "save_every": 3, "evaluate_every": 2, "patience": 9}


def begin(out: Path) -> Trainer:
    run = trainer("qwen3", out, **SETTINGS)
    run.answer = lambda: [{"prompt": "?", "answer": "!"}]
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = begin(tmp_path_factory.mktemp("whole"))
    run.run()
    return run


def signalling(function: Callable[..., Any], at: int, number: int, times: int = 1) -> Callable[..., Any]:
    """Return a function that gets a signal when it has done its work for the `at`-th time."""
    calls = iter(range(1, 1000))

    def called(*arguments: Any) -> Any:
        result = function(*arguments)
        for _ in range(times if next(calls) == at else 0):
            signal.raise_signal(number)
        return result

    return called


# What is being done -> (owner of the function, its name, call in which the signal comes, updates saved).
MOMENTS: dict[str, tuple[Callable[[Trainer], Any], str, int, int]] = {
    "between two batches": (lambda run: run.math, "gradient", 5, 2),
    "while factors are changed": (lambda run: run.math, "updated", 3, 3),
    "while an update is written down": (lambda run: run.metrics, "update", 1, 1),
    "in an evaluation": (lambda run: run, "evaluate", 1, 2),
    "after an evaluation is written down": (lambda run: run.metrics, "evaluation", 2, 4),
    "in the answers to samples": (lambda run: run, "answer", 2, 4),
    "while it saves": (lambda run: run, "save", 1, 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(moment: str, whole: Trainer, tmp_path: Path):
    owner, name, call, saved = MOMENTS[moment]
    number = signal.SIGTERM if name == "updated" else signal.SIGINT  # as a shutdown sends it
    run = begin(tmp_path)
    found = owner(run)
    setattr(found, name, signalling(getattr(found, name), call, number))
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.saved == saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = begin(tmp_path)
    again.resume()
    assert again.progress.step == saved
    assert again.run() == whole.progress
    assert same(factors(again), factors(whole))
    ours, theirs = ([without_times(line) for line in each.metrics.lines()] for each in (again, whole))
    assert ours == theirs


def test_an_interruption_before_the_first_update_leaves_no_run(tmp_path: Path):
    run = begin(tmp_path)
    run.math.gradient = signalling(run.math.gradient, 1, signal.SIGINT)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


@pytest.mark.parametrize("name", ["updated", "save"])
def test_a_second_interruption_leaves_at_once_and_harms_nothing_that_is_saved(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Trainer
):
    run = begin(tmp_path)
    if name == "updated":  # twice in the middle of an update: what is in memory is of no use
        run.math.updated = signalling(run.math.updated, 4, signal.SIGINT, 2)  # type: ignore[method-assign]
    else:  # and once between updates and once in the saving that follows, after its first file
        run.math.gradient = signalling(run.math.gradient, 7, signal.SIGINT)  # type: ignore[method-assign]
        saving = signalling(lambda *_: None, 3, signal.SIGINT)
        monkeypatch.setattr("macmoe.tuning.trainer.save_adapter", saving)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.saved == 3
    monkeypatch.undo()
    assert (tmp_path / STATE).is_file()
    assert not list(tmp_path.glob(".*"))
    again = begin(tmp_path)
    again.resume()
    assert again.progress.step == 3
    again.run()
    assert same(factors(again), factors(whole))
    assert read_adapter(tmp_path, "qwen3").specs


def test_an_adapter_that_a_kill_kept_from_its_folder_is_there_after_a_resume(tmp_path: Path, whole: Trainer):
    run = begin(tmp_path)
    run.run()
    (tmp_path / "adapter.json").unlink()
    again = begin(tmp_path)
    again.resume()
    assert again.run() == whole.progress
    assert read_adapter(tmp_path, "qwen3").specs


def test_signals_are_left_alone_where_the_program_handles_them_and_in_other_threads():
    interrupts = Interrupts()

    def listen() -> None:
        with interrupts.listening(), interrupts.held():
            pass

    other = threading.Thread(target=listen)
    other.start()
    other.join()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts.listening():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
