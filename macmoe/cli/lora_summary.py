"""The end of a run in words, and what to do next."""

from __future__ import annotations

import shlex
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

from macmoe.tuning.metrics import PICTURE
from macmoe.tuning.run_state import further
from macmoe.tuning.trainer import BEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from macmoe.tuning.config import RunOptions
    from macmoe.tuning.trainer import Trainer


def ending(trainer: Trainer, options: RunOptions, begun_at: int, seconds: float) -> Iterator[str]:
    """Yield the lines that end a run.

    Args:
        trainer: The trainer, which has run.
        options: The run.
        begun_at: Updates that were made before.
        seconds: How long it took.
    """
    done, out = trainer.progress.step, options.out
    if begun_at == done:
        yield f"{out}: the run had ended already, after {done:,} updates; {further(out)}"
    else:
        took = timedelta(seconds=round(seconds))
        yield f"{out}: the adapter after {done} of {trainer.steps} updates ({took}){_losses(trainer)}"
    if trainer.stopped_early:
        yield f"stopped early: {trainer.progress.waited} evaluations in a row got no better"
    yield from _validation(trainer)
    if trainer.adapts_routers and begun_at < done:
        yield from routing_in_words(trainer.routing())
    if find_spec("matplotlib") is None:
        yield f"no {PICTURE}: matplotlib is not installed (pip install 'macmoe[plot]')"
    model, folder = shlex.quote(options.model), shlex.quote(str(out))
    fused = shlex.quote(f"{out}-fused")
    yield f"try it: macmoe chat --model {model} --adapter {folder}"
    yield f"make it fast: macmoe lora fuse {folder} --model {model} --out {fused}"
    yield "(adapted layers run without the fused kernels; a fused model has them again)"


def interruption(trainer: Trainer) -> str:
    """Say what an interrupted run has kept, and how it goes on."""
    done, saved = trainer.progress.step, trainer.saved
    lost = "all saved" if saved == done else f"{saved} saved and {done - saved} lost"
    if not done:
        return f"{trainer.out}: stopped before the first update; the same command begins anew"
    how = "the same command with --resume continues" if saved else "the same command begins anew"
    return f"{trainer.out}: stopped after {done} of {trainer.steps} updates, {lost}; {how}"


def routing_in_words(report: Mapping[str, object]) -> Iterator[str]:
    """Yield what the adapter does to the choice of experts."""
    agreement, busiest = report["routing_agreement"], report["busiest_expert"]
    dead, layers = report["dead_experts"], report["layers_with_dead_experts"]
    yield f"experts: {agreement:.1%} of the choices are those of the model without the adapter"
    yield f"the busiest expert of a layer gets {busiest:.1%} of its tokens' choices"
    if dead:
        assert isinstance(layers, list)
        yield f"{dead} experts are not used any more, in layers {', '.join(map(str, layers))}"
    else:
        yield "no expert fell out of use"


def _losses(trainer: Trainer) -> str:
    losses = [line["loss"] for line in trainer.metrics.lines() if "loss" in line]
    return f": loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last" if losses else ""


def _validation(trainer: Trainer) -> Iterator[str]:
    """Yield the best validation loss and where its adapter lies."""
    lines = [line for line in trainer.metrics.lines() if "valid_loss" in line]
    if lines:
        best = min(lines, key=lambda line: line["valid_loss"])
        yield (
            f"lowest validation loss {best['valid_loss']:.4f} after update {best['step']} "
            f"(perplexity {best['perplexity']:.4g}); that adapter is in {trainer.out / BEST}"
        )
