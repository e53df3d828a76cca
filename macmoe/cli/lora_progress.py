"""What is seen of a run while it trains: a bar with notes above it on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from macmoe.cli.terminal import is_terminal, note, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import Progress

RECENT = 20  # updates whose pace tells how long the rest takes


class RunView:
    """Shows the lines of a run's metrics as they come.

    Args:
        every: Updates between two lines, where there is no terminal.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._stack = ExitStack()
        self._bar: Progress | None = None
        self._times: deque[float] = deque([time.monotonic()], maxlen=RECENT + 1)
        self._logged = False

    def __enter__(self) -> RunView:
        """Begin; the bar comes with `begin`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away."""
        self._stack.close()
        self._bar = None

    def begin(self, done: int, steps: int) -> None:
        """Show the bar, if there is a terminal and anything left to do; the first update may take long."""
        self._times[0] = time.monotonic()  # what came before was loading
        if done < steps and is_terminal(sys.stderr):
            self._bar = _open_bar(self._stack, done, steps)

    def note(self, text: str) -> None:
        """Write a note above the bar, in whole words."""
        if self._bar is None:
            note(text)
        else:
            from rich.text import Text  # noqa: PLC0415 - there is a bar, so rich is imported

            self._bar.console.print(Text(printable(text), style="dim"))

    def show(self, line: Mapping[str, Any]) -> None:
        """Show a line of the metrics: an update as progress, an evaluation and answers as notes."""
        if "valid_loss" in line:
            self.note(
                f"update {line['step']}: validation loss {line['valid_loss']:.4f}, "
                f"perplexity {line['perplexity']:.4g}"
            )
        elif "samples" in line:
            for sample in line["samples"]:
                self.note(_answer(sample))
        else:
            self._update(line)

    def _update(self, line: Mapping[str, Any]) -> None:
        step, steps = line["step"], line["steps"]
        self._times.append(time.monotonic())
        speed = f"{line['tokens_per_second']:,.0f} tokens/s"
        if self._bar is not None:
            text = f"{step:,} of {steps:,}  loss {line['loss']:.4f}  {speed}"
            self._bar.update(self._bar.task_ids[0], completed=step, facts=text, left=self._left(steps - step))
        elif not self._logged or step % self._every == 0 or step == steps:
            self._logged = True
            rate = f"learning rate {line['learning_rate']:.3g}"
            note(f"update {step:,} of {steps:,}: loss {line['loss']:.4f}, {rate}, {speed}")

    def _left(self, updates: int) -> str:
        """Say how long the rest takes at the pace of the last updates."""
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return f"{timedelta(seconds=round(pace * updates))} left"


def _answer(sample: Mapping[str, Any]) -> str:
    mode = "" if sample["thinking"] is None else f" (thinking {sample['thinking']})"
    thinking = f"[{sample['reasoning'].strip()}] " if sample["reasoning"].strip() else ""
    return f"{sample['prompt']}{mode}: {thinking}{sample['answer'].strip()}"


def _open_bar(stack: ExitStack, done: int, total: int) -> Progress:
    from rich import progress  # noqa: PLC0415 - only who sees a bar pays for the import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    text = progress.TextColumn("{task.fields[facts]}", table_column=Column(no_wrap=True))
    left = progress.TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True))
    bar = progress.BarColumn(bar_width=None, table_column=Column(ratio=1))
    shown = progress.Progress(
        *("training", bar, text, left), console=Console(stderr=True), transient=True, expand=True
    )
    stack.enter_context(shown).add_task(
        "", total=total, completed=done, facts=f"{done:,} of {total:,}", left=""
    )
    return shown
