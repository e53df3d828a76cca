"""`macmoe bench`: speed, memory and kernels of a model, alone or beside mlx-lm."""

from __future__ import annotations

from typing import Any

import click

from macmoe.bench.measure import Plan
from macmoe.bench.run import PEER, SIZES, Subject, Work, run
from macmoe.cli.bench_report import show
from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.model import complete
from macmoe.cli.options import Finite, cache_bits_option, check_plot, no_kernels_option
from macmoe.cli.paths import UserPath, check_file
from macmoe.cli.shapes import check_memory
from macmoe.cli.terminal import progress_bar
from macmoe.cli.unknown_keys import allow_unknown_keys_option, find_config
from macmoe.families import family_of
from macmoe_converters.targets import hub_spelling

COUNT = click.IntRange(min=1)
FILE = UserPath(dir_okay=False, allow_dash=True)


@click.command()
@click.argument("model_name", metavar="[MODEL]", required=False, shell_complete=complete)
@click.option("--shape", help="Random weights in a published shape, such as gpt-oss-20b.")
@click.option("--layers", type=COUNT, help="Use only the first N layers of --shape.")
@click.option(
    "--context", "contexts", type=COUNT, multiple=True, help="Decode with this many tokens in the KV cache."
)
@click.option("--prefill", "prompts", type=COUNT, multiple=True, help="Prefill a prompt of this many tokens.")
@click.option("--verify", "drafts", type=COUNT, multiple=True, help="Verify drafts of this many tokens.")
@click.option("--batch", "batches", type=COUNT, multiple=True, help="Decode this many sequences at once.")
@click.option("--tokens", type=COUNT, default=64, show_default=True, help="Tokens decoded per round.")
@click.option(
    "--rounds", type=COUNT, default=3, show_default=True, help="Rounds per side; the sides take turns."
)
@click.option(
    "--time-limit",
    type=Finite(min=0, min_open=True),
    help="Seconds per case; it ends with what was measured.",
)
@click.option("--against", type=click.Choice([PEER]), help="Also measure mlx-lm, on the same weights.")
@click.option(
    "--json", "json_file", type=FILE, callback=check_file, help="Write JSON to this file; - is stdout."
)
@click.option(
    "--plot", "plot_file", type=FILE, callback=check_plot, help="Draw the speeds into a PNG or SVG file."
)
@cache_bits_option
@allow_unknown_keys_option
@no_kernels_option
@opening_options
def command(*, model_name: str | None, shape: str | None, layers: int | None, **how: Any) -> None:
    """Measure speed, memory and kernels, also beside mlx-lm.

    MODEL is a checkpoint; --shape needs none. --context decodes after a KV cache of random content (512
    tokens by default), --prefill times a prompt up to the first token (2,048). --verify checks a draft of
    several tokens in one pass and --batch decodes a token of several sequences, both after the first
    --context. All four are repeatable. mlx-lm's KV cache stays in full precision whatever --cache-bits says.
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
