"""`macmoe lora preview`: what a model would learn from a data set, in color and in numbers."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, get_args

import click

from macmoe.cli.loading import offline_option
from macmoe.cli.lora_columns import columns_option
from macmoe.cli.model import model_option
from macmoe.cli.terminal import note, printable, table
from macmoe.tuning.batch import KINDS
from macmoe.tuning.masks import EmptyThinking
from macmoe.tuning.packing import Schedule
from macmoe.tuning.prepare import DataOptions, open_format, prepare

if TYPE_CHECKING:
    from macmoe.tokenizer import Tokenizer
    from macmoe.tuning.figures import Figures
    from macmoe.tuning.masks import Lesson
    from macmoe.tuning.packing import Fill
    from macmoe.tuning.prepare import Prepared

STYLES: dict[str, dict[str, Any]] = {
    "prompt": {"dim": True},
    "thinking": {"fg": "yellow"},
    "answer": {"fg": "green"},
}
BAR = 40  # characters of the longest bar of the histogram
DEFAULTS = DataOptions(data="")
DESCRIPTION = {"prompt": "prompt, not learned", "thinking": "learned thinking", "answer": "learned answer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """One split, ready to be shown."""

    split: str
    prepared: Prepared
    shown: list[Lesson]
    fill: Fill


@click.command()
@offline_option
@click.argument("data")
@model_option("Model whose tokenizer and chat template are used.")
@click.option(
    "--samples", "count", type=click.IntRange(0), default=3, show_default=True, help="Show this many samples."
)
@click.option(
    "--max-length",
    type=click.IntRange(2),
    default=DEFAULTS.max_length,
    show_default=True,
    help="Longest sample, in tokens.",
)
@columns_option
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out and count them.")
@click.option(
    "--empty-thinking",
    type=click.Choice(get_args(EmptyThinking)),
    default=DEFAULTS.empty_thinking,
    show_default=True,
    help="What to do with answers without reasoning in a thinking mode.",
)
@click.option(
    "--thinking-share", type=float, help="Repeat samples of the rarer mode until this share thinks."
)
@click.option(
    "--flag-share", type=float, default=0.0, help="Add /think or /no_think to this share of prompts (Qwen3)."
)
@click.option("--valid-share", type=float, default=0.0, help="Hold this share out for validation.")
@click.option("--seed", type=int, default=0, help="Seed for samples, repetitions and flags.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *,
    data: str,
    model_name: str,
    count: int,
    columns: dict[str, str] | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what a model would learn from DATA: a file, a folder or a hub id.

    Of each sample the prompt (dimmed), the thinking (yellow) and the answer (green) that the model would
    learn; then lengths, modes and everything that is left out. Only the tokenizer is loaded.
    """
    chosen = DataOptions(data=data, columns=columns or {}, **options)
    chat, tokenizer = open_format(model_name)
    previews = [
        Preview(
            split=split,
            prepared=prepared,
            shown=_choose(prepared.taught.lessons, count, chosen.seed),
            fill=_fill(prepared.taught.lessons, chosen),
        )
        for split, prepared in prepare(chosen, chat, tokenizer).items()
    ]
    if as_json:
        found = {preview.split: _to_json(preview, tokenizer) for preview in previews}
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for preview in previews:
        for lesson in preview.shown if preview.split == "train" else ():
            _show(lesson, tokenizer)
        _summarize(preview)


def _choose(lessons: tuple[Lesson, ...], count: int, seed: int) -> list[Lesson]:
    """Choose samples at random, all modes in turn, and return them in the order of the data."""
    order = random.Random(seed).sample(range(len(lessons)), len(lessons))  # noqa: S311 - what to look at
    by_mode = [
        [index for index in order if lessons[index].mode == mode] for mode in ("thinking", "direct", "text")
    ]
    turns = [indices[turn] for turn in range(len(order)) for indices in by_mode if turn < len(indices)]
    return [lessons[index] for index in sorted(turns[:count])]


def _fill(lessons: tuple[Lesson, ...], options: DataOptions) -> Fill:
    lengths = [len(lesson.sample.tokens) for lesson in lessons]
    return Schedule(
        lengths=lengths, row_length=options.row_length, rows=1, packed=True, seed=options.seed
    ).fill()


def _parts(lesson: Lesson, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return (kind, text) of the stretches of a sample."""
    pairs = zip(lesson.sample.kinds, lesson.sample.tokens, strict=True)
    runs = groupby(pairs, key=lambda pair: pair[0])
    return [(KINDS[kind], tokenizer.decode(token for _, token in run)) for kind, run in runs]


def _show(lesson: Lesson, tokenizer: Tokenizer) -> None:
    shortened = f", without the oldest {lesson.dropped} messages" if lesson.dropped else ""
    length = len(lesson.sample.tokens)
    click.secho(f"{lesson.place}: {lesson.mode}, {length} tokens{shortened}", bold=True)
    for kind, text in _parts(lesson, tokenizer):
        click.echo(f"[{DESCRIPTION[kind]}]")
        click.secho(printable(text).rstrip("\n"), **STYLES[kind])
    click.echo()


def _summarize(preview: Preview) -> None:
    figures, fill = preview.prepared.figures, preview.fill
    modes = ", ".join(f"{name} {count / figures.samples:.0%}" for name, count in figures.modes.items())
    click.echo(f"{preview.split}: {figures.samples:,} samples ({modes})")
    header = ("tokens", "total", "least", "median", "mean", "90 %", "most")
    rows = [
        (
            name,
            *(
                f"{value:,.0f}"
                for value in (
                    lengths.total,
                    lengths.least,
                    lengths.median,
                    lengths.mean,
                    lengths.ninetieth,
                    lengths.most,
                )
            ),
        )
        for name, lengths in figures.tokens.items()
    ]
    click.echo(table([header, *rows]))
    click.echo()
    click.echo(_histogram(figures))
    click.echo()
    click.echo(f"packed: {fill.rows:,} rows of {fill.places // fill.rows:,} places, {fill.share:.1%} in use")
    click.echo(f"truncated or left out for their length: {figures.truncated_share:.1%}")
    for line in preview.prepared.notes():
        note(line)


def _histogram(figures: Figures) -> str:
    most = max(count for _, _, count in figures.histogram)
    edge = len(f"{figures.histogram[-1][1]:,}")
    return "\n".join(
        f"{least:>{edge},} to {end:>{edge},}  {'█' * -(-BAR * count // most):<{BAR}}  {count:,}"
        for least, end, count in figures.histogram
    )


def _to_json(preview: Preview, tokenizer: Tokenizer) -> dict[str, Any]:
    figures = preview.prepared.figures
    return {
        **asdict(figures),
        "truncated_share": figures.truncated_share,
        "packing": {**asdict(preview.fill), "share": preview.fill.share},
        "notes": list(preview.prepared.notes()),
        "shown": [
            {
                "place": str(lesson.place),
                "mode": lesson.mode,
                "dropped_messages": lesson.dropped,
                "parts": [{"kind": kind, "text": text} for kind, text in _parts(lesson, tokenizer)],
            }
            for lesson in preview.shown
        ],
    }
