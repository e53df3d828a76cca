"""What the commands write with: dimmed notes and progress on stderr, aligned tables on stdout."""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TextIO

import click

from macmoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


# What could drive a terminal or disguise text: control characters (C0, DEL, C1) but tab and newline; marks
# that turn the direction of writing; separators that some terminals take for a new line.
CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}
DISGUISES = {0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)}
UNPRINTABLE = dict.fromkeys(CONTROLS | DISGUISES, "\N{REPLACEMENT CHARACTER}")


def printable(text: str) -> str:
    """Return a text that cannot control a terminal; what a model or a file provides goes through here.

    Each character counts on its own, so that a sequence cut into pieces is as harmless as a whole one.
    """
    return text.translate(UNPRINTABLE)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal; a closed one is None."""
    return stream is not None and stream.isatty()


@contextmanager
def keys_unseen() -> Iterator[None]:
    """Keep what is typed (a `^C`, say) out of an answer being drawn; the next prompt gets the rest."""
    try:
        import termios  # noqa: PLC0415 - Windows has none
    except ImportError:
        yield
        return
    try:
        before = termios.tcgetattr(0)
    except termios.error:  # no terminal
        yield
        return
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(0, termios.TCSANOW, silent)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, before)


def write_answer(text: str) -> None:
    """Write a piece of an answer to stdout: exactly to a file or pipe, printable to a terminal."""
    click.echo(printable(text) if is_terminal(sys.stdout) else text, nl=False, color=True)


def note(text: str, *, newline: bool = True) -> None:
    """Write thinking or statistics to stderr; a terminal shows them dimmed."""
    click.secho(printable(text), dim=True, err=True, nl=newline)


def read_text(argument: str) -> str:
    """Return an argument, or standard input where the argument is `-`.

    Raises:
        UsageError: It is not UTF-8.
    """
    try:
        if argument == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig")
        return argument.encode(
            errors="surrogateescape"
        ).decode()  # arguments carry foreign bytes as surrogates
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the text is not UTF-8 ({error.reason} at byte {error.start}); convert it first"
        ) from None


def size(count: float) -> str:
    """Write a number of bytes in the unit that leaves a readable number."""
    unit, factor = next((pair for pair in UNITS if count >= pair[1] / 2), UNITS[-1])
    return f"{count / factor:.2f} {unit}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equal length, the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        for row in rows
    )
    return "\n".join("  ".join(line) for line in lines)


@contextmanager
def progress_bar(label: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows (done, in all) as a bar, if stderr is a terminal and the job a long one."""
    with ExitStack() as stack:
        update = None

        def report(done: int, total: int) -> None:
            nonlocal update
            if update is None and done < total and is_terminal(sys.stderr):
                update = _open_bar(label, stack, in_bytes=in_bytes)
            if update is not None:
                update(done, total)

        yield report


def _open_bar(label: str, stack: ExitStack, *, in_bytes: bool) -> Callable[[int, int], None]:
    from rich import progress  # noqa: PLC0415 - only who sees a bar pays for the import
    from rich.console import Console  # noqa: PLC0415

    columns = progress.Progress.get_default_columns()
    if in_bytes:
        columns = (*columns, progress.DownloadColumn(), progress.TransferSpeedColumn())
    bar = stack.enter_context(progress.Progress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task(label, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
