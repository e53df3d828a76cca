"""`macmoe lora train`: data and a model become an adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from macmoe.cli.lora_options import run_options
from macmoe.cli.lora_plan import plan_rows
from macmoe.cli.terminal import note, printable, progress_bar, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option, unknown_keys_allowed
from macmoe.tuning.config import RunOptions
from macmoe.tuning.run import check_run, open_run, plan_run

if TYPE_CHECKING:
    from macmoe.tuning.run_state import Progress
    from macmoe.tuning.trainer import Trainer


@click.command()
@run_options
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, exactly.")
@allow_unknown_keys_option
def command(*, options: RunOptions, resume: bool) -> None:
    """Train an adapter.

    What is not given comes from --config, a TOML file with the sections [data], [lora] and [train].
    """
    check_run(options, resume=resume)
    allowed = unknown_keys_allowed()
    note(table(plan_rows(plan_run(options, allow_unknown_keys=allowed))))
    with progress_bar("training") as progress_of:
        trainer, remarks = open_run(
            options, functools.partial(_watch, progress_of), resume=resume, allow_unknown_keys=allowed
        )
        for remark in remarks:
            note(remark)
        progress = _run(trainer)
    if options.lora.trains_router:
        note(table([(name, str(figure)) for name, figure in trainer.routing().items()]))
    note(f"{options.out}: the adapter after {progress.step} of {trainer.steps} updates")


def _run(trainer: Trainer) -> Progress:
    """Train; Ctrl-C says how to continue and what is lost."""
    try:
        return trainer.run()
    except KeyboardInterrupt:
        done, saved = trainer.progress.step, trainer.saved
        how = "with --resume continues" if saved else "begins anew"
        note(
            f"{trainer.out}: stopped after {done} updates, {saved} saved and {done - saved} lost; "
            f"the same command {how}"
        )
        raise


def _watch(progress: Callable[[int, int], None], line: Mapping[str, Any]) -> None:
    """Show an update as progress, an evaluation as a line, an answer as it is."""
    if "valid_loss" in line:
        note(
            f"update {line['step']}: validation loss {line['valid_loss']:.4f}, "
            f"perplexity {line['perplexity']:.3f}"
        )
    elif "samples" in line:
        for sample in line["samples"]:
            mode = "" if sample["thinking"] is None else f" (thinking {sample['thinking']})"
            thinking = f"[{sample['reasoning'].strip()}] " if sample["reasoning"].strip() else ""
            note(printable(f"{sample['prompt']}{mode}: {thinking}{sample['answer'].strip()}"))
    else:
        progress(line["step"], line["steps"])
