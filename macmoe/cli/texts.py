"""The text that a command is about: an argument, files, and what is piped in beside them."""

from __future__ import annotations

import logging
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macmoe.cli.paths import UserPath
from macmoe.cli.terminal import is_terminal, note, read_text
from macmoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

STDIN = "-"
QUIET = 1.0  # seconds after which a wait for standard input is explained
PATIENCE = 10.0  # seconds after which input that nobody asked for and that stays open is left out


def file_option(text: str) -> Callable[..., Callable[..., None]]:
    """Make the option `--file`, which a command receives as `files`."""
    kind = UserPath(dir_okay=False, allow_dash=True)
    return click.option("--file", "files", type=kind, multiple=True, help=text)


def given_text(argument: str | None, files: Sequence[Path] = ()) -> str:
    """Join the argument, the files and what is piped in, with an empty line between them.

    A pipe beside an argument is read as well, since it was meant for something. It may be one that some
    other program opened and forgot, so waiting for it has an end, unless `-` asks for it.

    Raises:
        UsageError: A text is not UTF-8.
        OSError: A file cannot be read.
    """
    given = [] if argument is None else [read_text(argument)]
    given += [read_file(path) for path in files]
    if STDIN not in (argument, *map(str, files)):
        given.append(piped_text(waits=not given))
    *before, last = [text for text in given if text.strip()] or given[:1]
    return "\n\n".join([*(text.rstrip("\n") for text in before), last])


def read_file(path: Path) -> str:
    """Read a text; `-` is standard input, and a byte order mark is no text.

    Raises:
        UsageError: It is not UTF-8.
        OSError: It cannot be read.
    """
    if str(path) == STDIN:
        return read_text(STDIN)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); convert it first"
        ) from None


def piped_text(*, waits: bool) -> str:
    """Read standard input unless it is a terminal; without `waits`, leave one out that says nothing."""
    if sys.stdin is None or is_terminal(sys.stdin):
        return ""
    if waits or _speaks(QUIET):
        return read_text(STDIN)
    note("waiting for standard input to end (`< /dev/null` goes on without it)")
    if _speaks(PATIENCE):
        return read_text(STDIN)
    logger.warning(
        "nothing came through standard input for %g s, so it is left out; `--file -` waits for it", PATIENCE
    )
    return ""


def refuse_late_text() -> None:
    """Fail if text has come through standard input since it was left out: an answer without it is wrong.

    Raises:
        UsageError: See above.
    """
    descriptor = None if is_terminal(sys.stdin) else _descriptor()
    if descriptor is not None and _speaks(0) and os.read(descriptor, 1):
        raise UsageError("text came through standard input too late to be used; `--file -` waits for it")


def _speaks(seconds: float) -> bool:
    """Return whether standard input has text or has ended, after waiting for it."""
    descriptor = _descriptor()
    return descriptor is None or bool(select.select([descriptor], [], [], seconds)[0])


def _descriptor() -> int | None:
    """Return the descriptor of standard input; None where it is closed, or a program took its place."""
    try:
        return None if sys.stdin is None else sys.stdin.fileno()
    except (OSError, ValueError):
        return None
