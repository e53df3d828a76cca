"""The record of a run: a JSON line per update and evaluation, and a picture of the loss."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from macmoe.adapters.files import replace_file
from macmoe.tuning.loss import LossSums
from macmoe.tuning.trackers import open_trackers

if TYPE_CHECKING:
    from macmoe.tuning.trainer import Update

METRICS, PICTURE = "metrics.jsonl", "loss.png"


class Metrics:
    """Writes the lines of one run.

    Args:
        folder: Where to.
        watch: Called with every line.
        trackers: Where figures go as well, see `macmoe.tuning.trackers`.
        active: Whether this process writes at all.

    Raises:
        UsageError: A tracker is unknown or not installed.
    """

    def __init__(
        self,
        folder: Path,
        watch: Callable[[Mapping[str, Any]], None],
        trackers: Sequence[str] = (),
        *,
        active: bool,
    ) -> None:
        self.path = folder / METRICS
        self.watch = watch
        self.active = active
        self._trackers = open_trackers(trackers, folder) if active else []

    def update(self, update: Update, seconds: float) -> None:
        """Record an update."""
        self._write(
            {
                "step": update.step,
                "steps": update.steps,
                "epoch": update.epoch,
                "loss": update.sums.mean,
                **{f"{kind}_loss": loss for kind, loss in update.sums.by_kind().items()},
                "learning_rate": update.learning_rate,
                "gradient_norm": update.gradient_norm,
                **({} if update.balance is None else {"balance_loss": update.balance}),
                "tokens": update.tokens,
                "tokens_per_second": round(update.tokens / seconds, 1),
                "peak_bytes": mx.get_peak_memory(),
            }
        )

    def evaluation(self, step: int, sums: LossSums) -> None:
        """Record an evaluation."""
        losses = {f"valid_{kind}_loss": loss for kind, loss in sums.by_kind().items()}
        perplexity = math.exp(min(sums.mean, 700))
        self._write({"step": step, "valid_loss": sums.mean, "perplexity": perplexity, **losses})

    def samples(self, step: int, answers: Sequence[Mapping[str, Any]]) -> None:
        """Record what the model answers to the sample prompts."""
        self._write({"step": step, "samples": [dict(answer) for answer in answers]})

    def close(self) -> None:
        """Let the trackers write what they hold."""
        for tracker in self._trackers:
            tracker.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self.active:
            figures = {
                name: float(value)
                for name, value in line.items()
                if isinstance(value, (int, float)) and name not in ("step", "steps")
            }
            for tracker in self._trackers:
                tracker.log(line["step"], figures)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.watch(line)

    def lines(self) -> list[dict[str, Any]]:
        """Return what was recorded; a line that a kill cut short is left out."""
        if not self.path.exists():
            return []
        complete = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in complete]

    def rewind(self, step: int, *, looks: bool = True) -> None:
        """Forget what came after a step, because the run goes on from there; step 0 begins the file anew.

        Args:
            step: The last step to keep.
            looks: Whether its evaluation and its samples are kept, too.
        """
        lines = [line for line in self.lines() if line["step"] <= step] if step else []
        lines = [line for line in lines if looks or line["step"] < step or "loss" in line]
        kept = [json.dumps(line, ensure_ascii=False) + "\n" for line in lines]
        if self.active:
            replace_file(self.path, lambda draft: draft.write_text("".join(kept), encoding="utf-8"))

    def draw(self) -> None:
        """Draw the losses over the steps, if matplotlib is there (extra `plot`)."""
        if not self.active or find_spec("matplotlib") is None:
            return
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415

        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel="update", ylabel="loss per token")
        lines = self.lines()
        for name in ("loss", "thinking_loss", "answer_loss", "valid_loss"):
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label=name.replace("_", " "), marker="." * (len(points) < 9)
                )
        axes.legend()
        replace_file(self.path.with_name(PICTURE), lambda draft: figure.savefig(draft, format="png"))
