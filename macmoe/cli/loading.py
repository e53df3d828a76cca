"""Opening models for the commands: what takes long is announced, with a bar for each stage of it."""

from __future__ import annotations

import functools
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import macmoe
from macmoe.cli.model import introduce_default
from macmoe.cli.terminal import note, progress_bar
from macmoe.cli.unknown_keys import unknown_keys_allowed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from macmoe.session import Session

    Progress = Callable[[int, int], None]

OFFLINE = "HF_HUB_OFFLINE"
META = "macmoe.cli.loading"  # where a command's context keeps what was chosen here


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    ctx.meta.setdefault(META, {})[parameter.name] = value


def _go_offline(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value:
        return
    before = os.environ.get(OFFLINE)
    os.environ[OFFLINE] = "1"
    ctx.call_on_close(functools.partial(_restore, before))


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(OFFLINE, None)
    else:
        os.environ[OFFLINE] = before


offline_option = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    callback=_go_offline,
    help=f"Use only what is on this machine ({OFFLINE}=1 does the same).",
)
quantize_option = click.option(
    "--quantize",
    "recipe",
    metavar="RECIPE",
    expose_value=False,
    callback=_remember,
    help="Quantize the model at its first use, for example to 4bit (recipes as in `macmoe convert`).",
)
force_option = click.option(
    "--force",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Continue even if the model does not fit into memory or onto the disk.",
)


def opening_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say how models are opened; `open_session` finds what was chosen."""
    return functools.reduce(
        lambda wrapped, option: option(wrapped), (offline_option, force_option, quantize_option), command
    )


def chosen() -> dict[str, Any]:
    """Return `recipe` and `force` of the running command, as far as it has these options."""
    ctx = click.get_current_context(silent=True)
    found: dict[str, Any] = ctx.meta.get(META, {}) if ctx else {}
    return {"recipe": found.get("recipe"), "force": bool(found.get("force"))}


@contextmanager
def stages() -> Iterator[Callable[[str], Progress]]:
    """Give a function that makes the progress of a stage; its bar takes the place of the one before."""
    with ExitStack() as stack:

        def stage(label: str) -> Progress:
            bar: Progress | None = None

            def report(done: int, total: int) -> None:
                nonlocal bar
                if bar is None:
                    stack.close()
                    bar = stack.enter_context(progress_bar(label, in_bytes=True))
                bar(done, total)

            return report

        yield stage


def open_session(name: str, adapter: str | Path | None = None, *, second: bool = False) -> Session:
    """Load a model; say what has to be downloaded or converted first.

    Args:
        name: The model.
        adapter: The adapter to answer with.
        second: Whether it is one that another is compared with: --quantize is not meant for it.

    Raises:
        MacmoeError: The model or the adapter does not exist, is unsupported, damaged or too large.
    """
    introduce_default()
    how = chosen()
    with stages() as stage:
        return macmoe.load(
            name,
            adapter=adapter,
            progress=stage("converting"),
            loading=stage("loading"),
            announce=note,
            quantize=None if second else how["recipe"],
            force=how["force"],
            allow_unknown_keys=unknown_keys_allowed(),
        )
