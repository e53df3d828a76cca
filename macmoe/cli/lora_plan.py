"""`macmoe lora plan`: what a run would train, and the memory that it needs."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING

import click

from macmoe.cli.loading import offline_option
from macmoe.cli.lora_options import run_options
from macmoe.cli.options import Finite
from macmoe.cli.terminal import size, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option, unknown_keys_allowed
from macmoe.tuning.run import plan_run

if TYPE_CHECKING:
    from macmoe.tuning.config import RunOptions
    from macmoe.tuning.plan import Estimate

GIB = 2**30


@click.command()
@offline_option
@functools.partial(run_options, reads_data=False)
@click.option(
    "--memory",
    type=Finite(0, min_open=True),
    help="Memory limit in GiB; by default that of this machine.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@allow_unknown_keys_option
def command(*, options: RunOptions, memory: float | None, as_json: bool) -> None:
    """Count trainable parameters and estimate the memory of a run.

    Only headers are read. What does not fit is refused, with the cheapest change that would.
    """
    estimate = plan_run(
        options, None if memory is None else int(memory * GIB), allow_unknown_keys=unknown_keys_allowed()
    )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(estimate) | {"total": estimate.total}))
    else:
        click.echo(table(plan_rows(estimate)))


def plan_rows(estimate: Estimate) -> list[tuple[str, str]]:
    """Return an estimate as rows of a table."""
    return [
        ("trainable parameters", f"{estimate.trainable:,}"),
        ("weights", size(estimate.weights)),
        ("factors, gradients, optimizer", size(estimate.training)),
        ("activations", size(estimate.activations)),
        ("logits", size(estimate.logits)),
        ("estimated peak", size(estimate.total)),
    ]
