"""`macmoe bench`: speed, memory and kernels of a model, alone or beside mlx-lm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from macmoe.bench.measure import Plan
from macmoe.bench.run import PEER, SIZES, Subject, Work, run
from macmoe.cli.bench_report import show
from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.options import Finite, cache_bits_option, check_file, check_plot, no_kernels_option
from macmoe.cli.shapes import check_memory
from macmoe.cli.terminal import progress_bar
from macmoe.families import family_of
from macmoe.inspection import find_config
from macmoe_converters.targets import hub_spelling

COUNT = click.IntRange(min=1)
FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@click.argument("model_name", metavar="[MODEL]", required=False)
@click.option("--shape", help="Random weights in the shape of a published model, such as gpt-oss-20b.")
@click.option("--layers", type=COUNT, help="Only the first layers of --shape.")
@click.option("--context", "contexts", type=COUNT, multiple=True, help="Decode after this many tokens.")
@click.option("--prefill", "prompts", type=COUNT, multiple=True, help="Read a prompt of this many tokens.")
@click.option("--verify", "drafts", type=COUNT, multiple=True, help="Verify drafts of this many tokens.")
@click.option("--batch", "batches", type=COUNT, multiple=True, help="Decode so many sequences at once.")
@click.option("--tokens", type=COUNT, default=64, show_default=True, help="Decoded in a round.")
@click.option("--rounds", type=COUNT, default=3, show_default=True, help="Of each side, in turn.")
@click.option("--time-limit", type=Finite(min=0, min_open=True), help="Seconds for one case.")
@click.option("--against", type=click.Choice([PEER]), help="Measure it too, on the same weights.")
@click.option("--json", "json_file", type=FILE, callback=check_file, help="Write JSON to a file, or to -.")
@click.option("--plot", "plot_file", type=FILE, callback=check_plot, help="Draw into a PNG or SVG file.")
@cache_bits_option
@no_kernels_option
@opening_options
def command(*, model_name: str | None, shape: str | None, layers: int | None, **how: Any) -> None:
    """Measure speed, memory and kernels, also beside mlx-lm.

    MODEL is a checkpoint; --shape needs none. Decoding follows a cache of random content (--context, usually
    512), reading a prompt is timed until the first token (--prefill, 2,048). --verify reads a few tokens at
    once after the first --context (or 512) and waits for the choice at each, again and again, as drafts are
    verified; --batch does so with a token of each of some sequences. All four may be repeated. mlx-lm's cache
    stays in full precision whatever --cache-bits says.
    """
    if (model_name is None) == (shape is None) or (layers and not shape):
        raise click.UsageError("Give either MODEL, or --shape NAME with or without --layers.")
    plan = Plan(tokens=how["tokens"], rounds=how["rounds"], time_limit=how["time_limit"])
    work = Work.asked(**{name: how[name] for name in SIZES}, plan=plan)
    name = model_name or shape or ""
    config = find_config(name)[0]
    work.check_fits(name, family_of(config).build(config).config.max_position_embeddings)
    if shape:
        check_memory(shape, config, layers)
        subject = Subject.drawn(shape, config, layers, how["cache_bits"])
    else:
        model = open_session(name).model
        subject = Subject(name=name, model=model, config=hub_spelling(config), cache_bits=how["cache_bits"])
    with progress_bar("measuring") as bar:
        sides = subject.sides(against_peer=how["against"] is not None)
        report = run(subject, sides, work, done=lambda report: bar(len(report.cases), work.cases))
    show(report, how["json_file"], how["plot_file"])
