"""`macmoe chat`: a conversation."""

from __future__ import annotations

import sys
from contextlib import closing, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from macmoe.answer import Stats
from macmoe.cli import Failure, describe
from macmoe.cli.editor import PROMPT, agrees, line_editor, piped_line, read_message
from macmoe.cli.events import show
from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.options import (
    answer_options,
    cache_bits_option,
    cache_option,
    no_kernels_option,
    open_cache,
)
from macmoe.cli.paths import UserPath
from macmoe.cli.screen import PLAIN_WRITERS, LiveScreen, erase_live_line, ignore
from macmoe.cli.slash import completions, run_command
from macmoe.cli.terminal import is_terminal, keys_unseen, note, printable
from macmoe.cli.unknown_keys import allow_unknown_keys_option
from macmoe.errors import ContextError, MacmoeError, UsageError
from macmoe.tools import load_tools

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from macmoe.chat.messages import ToolCall
    from macmoe.cli.events import Writers
    from macmoe.conversation import Conversation, Events, Settings
    from macmoe.generate import Progress
    from macmoe.session import Session

NO_ADAPTER = "off"
MAX_ROUNDS = 16  # of tool calls for one question: a model that calls for ever must not run for ever
SHOWN = 1000  # characters of a result
REFUSED = "error: the user does not allow this call"
WELCOME = "{model}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
AGAIN = "Ctrl-C again leaves"
STOPPED = f"stopped; {AGAIN}"
TOO_LONG = "/undo takes back the last question and its answer, /clear begins a new conversation"


@click.command()
@click.argument("message", required=False)
@answer_options
@opening_options
@cache_option
@cache_bits_option
@allow_unknown_keys_option
@no_kernels_option
@click.option(
    "--tool",
    "tool_files",
    multiple=True,
    type=UserPath(dir_okay=False),
    help="Python file whose functions the model may call; the file is run; repeatable.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    type=UserPath(),
    help="LoRA adapter to apply; repeatable, /adapter switches between them by folder name.",
)
@click.option(
    "--load",
    "load_file",
    type=UserPath(dir_okay=False),
    help="Continue a saved conversation, or a JSON list of messages.",
)
@click.option("--yes", is_flag=True, help="Run tool calls without asking.")
@click.option("--hide-thinking", is_flag=True, help="Do not show the thinking.")
@click.option("--no-stats", is_flag=True, help="Do not show statistics after an answer.")
def command(
    *,
    message: str | None,
    model_name: str,
    settings: Settings,
    cache_file: Path | None,
    cache_bits: int | None,
    tool_files: tuple[Path, ...],
    adapters: tuple[Path, ...],
    load_file: Path | None,
    yes: bool,
    hide_thinking: bool,
    no_stats: bool,
) -> None:
    """Have a conversation.

    MESSAGE is the first question. On a terminal, /help lists the commands. From a pipe or a file each line is
    a message or a command, and only answers go to stdout. Tools run when you agree; without a terminal to ask
    on, only with --yes.
    """
    tools = [tool for path in tool_files for tool in load_tools(path)]
    named = names_of(adapters)
    session = open_session(model_name)
    for path in reversed(named.values()):  # every one is read now, and the first is used
        session.use_adapter(path)
    session.format.opening(settings.thinking)  # refuses what the model cannot do, before a question is asked
    # Without a file nothing but the conversation holds the cache, whose model /model exchanges.
    saved = nullcontext() if cache_file is None else open_cache(session, cache_file, cache_bits)
    with saved as kept:
        cache = session.make_cache(cache_bits) if kept is None else kept
        conversation = session.chat(settings, tools=tools, cache=cache)
        if load_file is not None:
            conversation.load(load_file)
        interactive = all(map(is_terminal, (sys.stdin, sys.stdout, sys.stderr)))
        dialogue = (on_terminal if interactive else in_pipe)(
            session, conversation, yes=yes, hide_thinking=hide_thinking
        )
        del session, cache  # /model exchanges them, and the memory of the first ones has to become free
        dialogue.model, dialogue.cache_bits = model_name, cache_bits
        dialogue.adapters, dialogue.adapter = named, next(iter(named), None)
        if no_stats:
            dialogue.writers[Stats] = ignore
        if interactive:
            note(WELCOME.format(model=model_name))
            if message is not None:
                click.echo(f"{PROMPT}{printable(message)}", err=True)
        dialogue.run(message)


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Return adapters by the names of their folders.

    Raises:
        UsageError: Two have the same name, or one has the name that stands for none.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in named or name == NO_ADAPTER:
            raise UsageError(f"{folder}: an adapter called '{name}' cannot be told apart; rename its folder")
        named[name] = folder
    return named


@dataclass(slots=True, kw_only=True)
class Dialogue:
    """Questions and commands on one side, answers on the other.

    Attributes:
        session: The model.
        conversation: What was said.
        read_line: Returns the next line, given a prompt; EOFError at the end.
        writers: Show the events of an answer.
        consents: Tells whether a tool call may run.
        progress: Shows how much of a prompt is read.
        interactive: Whether failures and Ctrl-C end only a turn.
        hide_thinking: Whether thinking is not shown at all.
        model: The name that the model was asked for by.
        cache_bits: Of a packed number in its cache, see `Session.make_cache`.
        adapters: The adapters to choose from, by name.
        adapter: The name of the one that answers, or None.
        busy: Whether something that was entered is being answered.
        hint: What to say of the Ctrl-C that was pressed last; nothing once something is entered.
    """

    session: Session
    conversation: Conversation
    read_line: Callable[[str], str]
    writers: Writers
    consents: Callable[[ToolCall], bool]
    progress: Progress | None = None
    interactive: bool
    hide_thinking: bool = False
    model: str = ""
    cache_bits: int | None = None
    adapters: dict[str, Path] = field(default_factory=dict)
    adapter: str | None = None
    busy: bool = False
    hint: str = ""

    def run(self, message: str | None = None) -> None:
        """Take messages and commands until there are no more, the first one perhaps from the command line."""
        waiting = [] if message is None else [message]
        while True:
            try:  # everything happens in here, since Ctrl-C may come at any moment
                if self.hint:
                    erase_live_line()
                    note(self.hint)
                self._turn(waiting)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.interactive or self.hint:
                    raise
                self.hint = STOPPED if self.busy else AGAIN

    def _turn(self, waiting: list[str]) -> None:
        """Take one message or command; on a terminal a failure is a line, and the chat goes on."""
        try:
            self.busy = False
            text = waiting.pop() if waiting else read_message(self.read_line)
            self.busy, self.hint = True, ""
            self.take(text)
        except (MacmoeError, OSError) as error:
            if not self.interactive or isinstance(error, BrokenPipeError):
                raise
            Failure(describe(error)).show()

    def take(self, text: str) -> None:
        """Run a command, or send a message and show the answer."""
        if text.startswith("/"):
            run_command(self, text)
        elif text.strip():
            self.answer(self.conversation.send(text.strip(), progress=self.progress))

    def answer(self, events: Events) -> None:
        """Show an answer; run what it calls, if that is allowed, and show the answers to the results."""
        self._show(events)
        for _ in range(MAX_ROUNDS):
            if not self.conversation.pending:
                return
            results = [self._call(call) for call in self.conversation.pending]
            self._show(self.conversation.reply(results, progress=self.progress))
        note(f"stopped after {MAX_ROUNDS} rounds of tool calls")

    def _show(self, events: Events) -> None:
        unseen = keys_unseen() if self.interactive else nullcontext()
        with unseen, closing(events):  # a stopped answer must be in the conversation before the next question
            try:
                show(events, self.writers, hide_thinking=self.hide_thinking)
            except ContextError as error:
                if not self.conversation.messages:
                    raise
                raise ContextError(error.tokens, error.positions, TOO_LONG) from None

    def _call(self, call: ToolCall) -> str:
        if not self.consents(call):
            note("not run")
            return REFUSED
        with redirect_stdout(sys.stderr):  # what a function prints is no answer
            result = self.conversation.run(call)
        note(f"= {result}" if len(result) <= SHOWN else f"= {result[:SHOWN]}... ({len(result)} characters)")
        return result


def on_terminal(session: Session, conversation: Conversation, *, yes: bool, hide_thinking: bool) -> Dialogue:
    """Return a dialogue with a user who sees what happens and can be asked."""

    def count(text: str) -> int:
        return len(dialogue.session.tokenizer.encode(text))  # of the model that answers now

    screen = LiveScreen(count, hide_thinking=hide_thinking)
    dialogue = Dialogue(
        session=session,
        conversation=conversation,
        read_line=line_editor(completions()),
        writers=screen.writers,
        consents=(lambda _: True) if yes else ask,
        progress=screen.progress,
        interactive=True,
    )
    return dialogue


def in_pipe(session: Session, conversation: Conversation, *, yes: bool, hide_thinking: bool) -> Dialogue:
    """Return a dialogue with lines of a file or another program, which nobody watches."""
    return Dialogue(
        session=session,
        conversation=conversation,
        read_line=piped_line,
        writers=dict(PLAIN_WRITERS),
        consents=lambda _: yes,
        interactive=False,
        hide_thinking=hide_thinking,
    )


def ask(call: ToolCall) -> bool:
    """Ask whether a call that is on the screen may run."""
    return agrees(f"Run {printable(call.name)}? [y/N] ")
