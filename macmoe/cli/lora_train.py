"""`macmoe lora train`: data and a model become an adapter."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from macmoe.cli.loading import offline_option, stages
from macmoe.cli.lora_options import run_options
from macmoe.cli.lora_plan import plan_rows
from macmoe.cli.lora_progress import RunView
from macmoe.cli.lora_summary import ending, interruption
from macmoe.cli.terminal import note, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option, unknown_keys_allowed
from macmoe.tuning.config import RunOptions
from macmoe.tuning.run import check_run, open_run, plan_run

if TYPE_CHECKING:
    from macmoe.tuning.trainer import Trainer


@click.command()
@offline_option
@run_options
@click.option("--resume", is_flag=True, help="Go on with the run in the folder, exactly.")
@allow_unknown_keys_option
def command(*, options: RunOptions, resume: bool) -> None:
    """Train an adapter.

    What is not given comes from --config, a TOML file with the sections [data], [lora] and [train].
    Ctrl-C saves the last whole update; a second one leaves at once.
    """
    check_run(options, resume=resume)
    allowed = unknown_keys_allowed()
    note(table(plan_rows(plan_run(options, allow_unknown_keys=allowed))))
    with RunView(options.train.log_every) as view:
        with stages() as stage:
            watch = functools.partial(_watch, view)
            trainer, remarks = open_run(
                options, watch, resume=resume, stage=stage, allow_unknown_keys=allowed
            )
        for remark in remarks:
            note(remark)
        begun_at, begin = trainer.progress.step, time.monotonic()
        view.begin(trainer.progress.step, trainer.steps)
        _run(trainer, view)
    for line in ending(trainer, options, begun_at, time.monotonic() - begin):
        note(line)


def _run(trainer: Trainer, view: RunView) -> None:
    """Train; Ctrl-C says what is saved and how to continue."""
    try:
        trainer.run()
    except KeyboardInterrupt:
        view.note(interruption(trainer))
        raise


def _watch(view: RunView, line: Mapping[str, Any]) -> None:
    view.show(line)
