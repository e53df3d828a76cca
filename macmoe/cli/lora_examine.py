"""`macmoe lora examine`: whether a model thinks exactly when it is asked to, and answers right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.lora_columns import columns_option
from macmoe.cli.model import model_option
from macmoe.cli.options import adapter_option
from macmoe.cli.terminal import note, progress_bar, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option
from macmoe.tuning.data import read_dataset
from macmoe.tuning.evaluation import examine, modes_of
from macmoe.tuning.verifiers import open_verifier

if TYPE_CHECKING:
    from macmoe.tuning.evaluation import ModeResult


@click.command()
@opening_options
@click.argument("questions")
@allow_unknown_keys_option
@model_option()
@adapter_option
@click.option(
    "--mode",
    "modes",
    multiple=True,
    help="Mode to ask in: on, off, low, ..., /think; repeatable, by default all.",
)
@click.option("--verify", "verifier_name", metavar="HOW", help="exact, regex:PATTERN or FILE.py:FUNCTION.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=2048, show_default=True, help="Limit of a reply."
)
@click.option(
    "--batch", type=click.IntRange(1), default=16, show_default=True, help="Questions asked at once."
)
@columns_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    questions: str,
    model_name: str,
    adapter: Path | None,
    modes: tuple[str, ...],
    verifier_name: str | None,
    max_tokens: int,
    batch: int,
    columns: dict[str, str] | None,
    as_json: bool,
) -> None:
    """Ask a model the QUESTIONS in each mode: how often it keeps the mode, and how often it is right.

    QUESTIONS is a data set as for training; --verify compares with the completion, or the last answer.
    """
    verifier = open_verifier(verifier_name) if verifier_name else None
    found = read_dataset(questions, columns=columns)
    for line in found.notes():
        note(line)
    records = found.records
    session = open_session(model_name, adapter)
    with progress_bar("asking") as progress:
        results = examine(
            session,
            records,
            modes or modes_of(session),
            verifier,
            max_tokens=max_tokens,
            batch=batch,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps({mode: asdict(result) for mode, result in results.items()}))
        return
    note(f"{len(records):,} questions in each mode")
    click.echo(table([HEADER, *(_row(mode, result) for mode, result in results.items())]))


HEADER = ("mode", "kept", "complete", "right", "tokens of thinking")


def _row(mode: str, result: ModeResult) -> tuple[str, ...]:
    right = "" if result.correct is None else f"{result.correct:.1%}"
    return (mode, f"{result.followed:.1%}", f"{result.complete:.1%}", right, f"{result.thinking_tokens:.0f}")
