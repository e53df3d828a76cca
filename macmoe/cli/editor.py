"""Where the messages of a chat come from: a line editor on a terminal, else the lines of standard input."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macmoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

PROMPT, CONTINUED = "> ", "  "
QUOTES = '"""'


def read_message(read_line: Callable[[str], str]) -> str:
    r"""Return the next message: a line, lines joined by trailing backslashes, or all between two `\"\"\"`.

    Raises:
        EOFError: There are no more lines.
        UsageError: They end inside a message.
    """
    first = read_line(PROMPT)
    lines = [first]
    quoted = first.startswith(QUOTES)
    try:
        while _goes_on(lines, quoted=quoted):
            lines.append(read_line(CONTINUED))
    except EOFError:
        raise UsageError("the input ends inside a message; it was not sent") from None
    text = "\n".join(lines)
    return text.strip().removeprefix(QUOTES).removesuffix(QUOTES) if quoted else text.replace("\\\n", "\n")


def _goes_on(lines: Sequence[str], *, quoted: bool) -> bool:
    if not quoted:
        return lines[-1].endswith("\\")
    last = lines[0].removeprefix(QUOTES) if len(lines) == 1 else lines[-1]
    return not last.rstrip().endswith(QUOTES)


def piped_line(prompt: str) -> str:  # noqa: ARG001 - nobody reads a prompt here
    """Return the next line of standard input.

    Raises:
        EOFError: There is none.
        UsageError: It is not UTF-8.
    """
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the input is not UTF-8 ({error.reason}); convert it first") from None


def line_editor(words: Sequence[str]) -> Callable[[str], str]:
    """Return a function that lets the user edit a line on the terminal.

    A pasted text arrives as one message, whatever lines it has; Alt-Enter begins a new line. The prompt goes
    to stderr. Ctrl-D raises EOFError, Ctrl-C KeyboardInterrupt.

    Args:
        words: What the tab key completes at the beginning of a line.
    """
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - only who chats on a terminal pays for the import
    from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415
    from prompt_toolkit.output import create_output  # noqa: PLC0415

    session: PromptSession[str] = PromptSession(
        history=_history(),
        multiline=True,
        key_bindings=_keys(),
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        prompt_continuation=CONTINUED,
        output=create_output(stdout=sys.stderr),
    )
    return partial(_ask, session)


def agrees(question: str) -> bool:
    """Ask a question on the terminal; only y or yes agrees. Ctrl-C raises KeyboardInterrupt."""
    from prompt_toolkit import PromptSession  # noqa: PLC0415
    from prompt_toolkit.output import create_output  # noqa: PLC0415

    session: PromptSession[str] = PromptSession(output=create_output(stdout=sys.stderr))
    try:
        return _ask(session, question).strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _ask(session: PromptSession[str], question: str) -> str:
    """Return a line; Ctrl-C raises KeyboardInterrupt at any moment."""
    from asyncio import CancelledError  # noqa: PLC0415

    try:
        return session.prompt(question)
    except CancelledError:  # what becomes of Ctrl-C while the prompt is not ready for keys
        raise KeyboardInterrupt from None


def _keys() -> KeyBindings:
    """Let Enter send and Alt-Enter begin a new line, the other way round than in a text."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent  # noqa: PLC0415

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """Return the history of all chats, in a file that only the user can read; without one, of this chat."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415

    path = history_file()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def history_file() -> Path:
    """Return where the history lies."""
    return Path(click.get_app_dir("macmoe")) / "history"
