"""Options that commands share: how to answer, which cache to go on with, where to write."""

from __future__ import annotations

import functools
import math
import os
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macmoe.cli.model import model_option
from macmoe.cli.paths import UserPath, check_file, with_parents
from macmoe.conversation import Settings
from macmoe.errors import UsageError
from macmoe.kernels.source import SWITCH
from macmoe.prompt_cache import PromptCache
from macmoe.sampling import SEEDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from macmoe.session import Session

THINKING = ("off", "on", "low", "medium", "high")


class Finite(click.FloatRange):
    """A number between limits; click's own type also takes NaN, which no limit excludes, and infinity."""

    def _describe_range(self) -> str:
        """Return the limits for the help, nothing where there are none."""
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


ANSWER_OPTIONS = (
    model_option(),
    click.option("--system", help="System message."),
    click.option(
        "--thinking", type=click.Choice(THINKING), help="How much to think; not every model has every level."
    ),
    click.option(
        "--thinking-budget",
        type=click.IntRange(0),
        help="Close the thinking after this many tokens, and answer.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        help="Limit of thinking and answer together; by default the room left in the context.",
    ),
    click.option(
        "--max-answer-tokens", type=click.IntRange(1), help="Limit of the answer alone, without thinking."
    ),
    click.option("--temperature", type=Finite(0), help="Sampling temperature; 0 is greedy."),
    click.option(
        "--top-p",
        type=Finite(0, 1, min_open=True),
        help="Nucleus sampling: keep the likeliest tokens up to this sum.",
    ),
    click.option(
        "--top-k", type=click.IntRange(0), help="Keep this many of the likeliest tokens; 0 keeps all."
    ),
    click.option("--min-p", type=Finite(0, 1), help="Drop tokens below this share of the best one."),
    click.option(
        "--repetition-penalty",
        type=Finite(0, min_open=True),
        help="Above 1, tokens of the prompt and the answer become less likely.",
    ),
    click.option(
        "--presence-penalty", type=Finite(), help="Above 0, tokens already in the answer become less likely."
    ),
    click.option("--frequency-penalty", type=Finite(), help="The same, once for every time they occur."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=lambda _, __, texts: texts or None,
        help="Stop before this text in the answer; repeatable.",
    ),
    click.option("--seed", type=click.IntRange(0, SEEDS - 1), help="Makes a sampled answer reproducible."),
)


def check_plot(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a picture that cannot be drawn, before there is anything to draw.

    Raises:
        UsageError: matplotlib is not installed or knows no such format, or the file cannot be made.
    """
    if path is None:
        return None
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and half a second
    except ImportError:
        raise UsageError("--plot needs matplotlib; install macmoe[plot]") from None
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise UsageError(f"{path}: no format that can be drawn; there are {', '.join(formats)}")
    return check_file(ctx, parameter, path)


def answer_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how to answer; the command receives `model_name` and `settings`."""

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> None:
        given = {field.name: arguments.pop(field.name) for field in fields(Settings)}
        command(settings=Settings(**given), **arguments)

    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(ANSWER_OPTIONS), with_settings)


adapter_option = click.option(
    "--adapter",
    type=UserPath(),
    help="LoRA adapter to apply: a folder written by macmoe, PEFT or mlx-lm.",
)
cache_option = click.option(
    "--cache",
    "cache_file",
    type=UserPath(dir_okay=False),
    callback=check_file,
    help="Load the prompt cache from this file if it exists, and save it there at the end.",
)

cache_bits_option = click.option(
    "--cache-bits",
    "cache_bits",
    type=click.Choice(["8"]),
    callback=lambda _, __, bits: bits and int(bits),
    help="Quantize the KV cache to 8 bits.",
)


def _turn_kernels_off(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and SWITCH not in os.environ:
        os.environ[SWITCH] = "0"
        ctx.call_on_close(lambda: os.environ.pop(SWITCH, None))


no_kernels_option = click.option(
    "--no-kernels",
    is_flag=True,
    expose_value=False,
    callback=_turn_kernels_off,
    help=f"Use plain MLX operations instead of macmoe's kernels (as {SWITCH}=0).",
)


@contextmanager
def open_cache(session: Session, path: Path | None, bits: int | None) -> Iterator[PromptCache | None]:
    """Give the prompt cache in a file, a new one where there is no file yet; None without a path and bits.

    The file is written at the end, also after a failure or Ctrl-C, but only if there is something to keep.

    Raises:
        CheckpointError: The file is no cache, or of another model.
        UsageError: It is kept in other bits, or the model's cache cannot be.
    """
    if path is None:
        yield None if bits is None else session.make_cache(bits)
        return
    held = PromptCache.load(path, session.model, bits) if path.exists() else session.make_cache(bits)
    try:
        yield held
    finally:
        if held.tokens:
            held.save(with_parents(path))
