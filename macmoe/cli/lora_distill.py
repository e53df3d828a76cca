"""`macmoe lora distill`: thinking data from the model itself, kept only where a verifier says it is right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.lora_columns import columns_option
from macmoe.cli.model import model_option
from macmoe.cli.options import THINKING, Finite, adapter_option
from macmoe.cli.paths import UserPath
from macmoe.cli.terminal import note, progress_bar, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option
from macmoe.sampling import SamplingOptions
from macmoe.tuning.data import read_dataset
from macmoe.tuning.distill import DistillOptions, distill
from macmoe.tuning.verifiers import open_verifier

if TYPE_CHECKING:
    from macmoe.chat.format import Thinking
    from macmoe.tuning.distill import Tally

SAMPLING = ("temperature", "top_p", "top_k", "seed")


@click.command()
@opening_options
@click.argument("questions")
@allow_unknown_keys_option
@model_option()
@adapter_option
@click.option(
    "--out",
    required=True,
    type=UserPath(dir_okay=False),
    help="JSON lines file to write; a stopped run continues.",
)
@click.option(
    "--verify",
    "verifier_name",
    default="exact",
    show_default=True,
    metavar="HOW",
    help="exact, regex:PATTERN or FILE.py:FUNCTION.",
)
@click.option(
    "--thinking", type=click.Choice(THINKING), default="on", show_default=True, help="Thinking mode."
)
@click.option("--tries", type=click.IntRange(1), default=4, show_default=True, help="Replies per question.")
@click.option(
    "--keep", type=click.IntRange(1), default=1, show_default=True, help="Right replies to keep per question."
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=2048, show_default=True, help="Limit of a reply."
)
@click.option("--temperature", type=Finite(0), default=1.0, show_default=True)
@click.option("--top-p", type=Finite(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--block", type=click.IntRange(1), default=16, show_default=True, help="Questions asked at once."
)
@click.option("--seed", type=int, default=0, show_default=True)
@columns_option
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out and count them.")
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON.")
def command(
    *,
    questions: str,
    model_name: str,
    adapter: Path | None,
    out: Path,
    verifier_name: str,
    thinking: str,
    columns: dict[str, str] | None,
    skip_bad: bool,
    as_json: bool,
    **drawing: Any,
) -> None:
    """Make thinking data: ask the model each question of QUESTIONS, keep replies that are right.

    QUESTIONS is a data set as for training: rows with a prompt, or messages; the completion, or the last
    answer, is what `exact` and a group of `regex:` compare with. FUNCTION(answer, reference) returns a bool.
    """
    sampling = SamplingOptions(**{name: drawing.pop(name) for name in SAMPLING})
    options = DistillOptions(thinking=cast("Thinking", thinking), sampling=sampling, **drawing)
    verifier = open_verifier(verifier_name)
    found = read_dataset(questions, skip_bad=skip_bad, columns=columns)
    for line in found.rejected:
        note(f"left out: {line}")
    for line in found.notes():
        note(line)
    session = open_session(model_name, adapter)
    source = model_name if adapter is None else f"{model_name} with {adapter}"
    with progress_bar("asking") as progress:
        tally = distill(session, found.records, verifier, options, out, source=source, progress=progress)
    click.echo(json.dumps(asdict(tally)) if as_json else summary(tally))


def summary(tally: Tally) -> str:
    """Describe what a distillation has come to."""
    rows = [
        ("questions", f"{tally.questions:,}"),
        ("solved", f"{tally.solved:,} ({tally.solved / tally.questions:.1%})"),
        ("replies", f"{tally.tries:,}"),
        ("kept", f"{tally.kept:,}"),
        *((f"  {reason}", f"{count:,}") for reason, count in tally.rejected.items()),
    ]
    return table(rows)
