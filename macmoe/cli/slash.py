"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmoe.cli.events import summary
from macmoe.cli.terminal import note
from macmoe.config import nearest
from macmoe.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmoe.cli.chat import Dialogue

UNSET = "-"
OFF = "off"


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it does with its argument, and what /help says."""

    run: Callable[[Dialogue, str], None]
    argument: str
    help: str


def run_command(dialogue: Dialogue, line: str) -> None:
    """Run the command in a line.

    Raises:
        UsageError: There is no such command, or its argument makes no sense.
        EOFError: The chat is to end.
    """
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        hint = nearest(name, list(COMMANDS)) or "; /help lists the commands"
        raise UsageError(f"{name} is no command{hint} (a message may begin with a space)")
    COMMANDS[name].run(dialogue, argument.strip())


def _set(dialogue: Dialogue, name: str, value: Any) -> None:
    conversation = dialogue.conversation
    conversation.settings = replace(conversation.settings, **{name: value})


def _tell(dialogue: Dialogue, name: str) -> None:
    value = getattr(dialogue.conversation.settings, name)
    note(f"{name.replace('_', ' ')}: {'not set' if value is None else value}")


def _thinking(dialogue: Dialogue, argument: str) -> None:
    if argument == UNSET:
        _set(dialogue, "thinking", None)
    elif argument:
        dialogue.session.format.opening(argument)  # type: ignore[arg-type]  refuses what the model does not have
        _set(dialogue, "thinking", argument)
    _tell(dialogue, "thinking")


def _budget(dialogue: Dialogue, argument: str) -> None:
    if argument == UNSET:
        _set(dialogue, "thinking_budget", None)
    elif argument:
        if not argument.isdecimal():
            raise UsageError(f"a budget is a number of tokens or {UNSET}, not {argument!r}")
        _set(dialogue, "thinking_budget", int(argument))
    _tell(dialogue, "thinking_budget")


def _system(dialogue: Dialogue, argument: str) -> None:
    if argument:
        _set(dialogue, "system", None if argument == UNSET else argument)
    _tell(dialogue, "system")


def _adapter(dialogue: Dialogue, argument: str) -> None:
    if argument:
        wanted = None if argument == OFF else argument
        if wanted is not None and wanted not in dialogue.adapters:
            known = [*dialogue.adapters, OFF]
            raise UsageError(f"there is no adapter '{argument}'; known are {', '.join(known)}")
        if wanted != dialogue.adapter:
            dialogue.session.use_adapter(None if wanted is None else dialogue.adapters[wanted])
            dialogue.adapter = wanted
            dialogue.conversation.forget()
    others = [name for name in dialogue.adapters if name != dialogue.adapter]
    note(f"adapter: {dialogue.adapter or OFF}" + (f" (there are {', '.join(others)})" if others else ""))


def _undo(dialogue: Dialogue, _: str) -> None:
    note(f"taken back: {dialogue.conversation.undo()}")


def _retry(dialogue: Dialogue, _: str) -> None:
    dialogue.answer(dialogue.conversation.retry(progress=dialogue.progress))


def _save(dialogue: Dialogue, argument: str) -> None:
    path = _path(argument, "/save")
    dialogue.conversation.save(path)
    note(f"{len(dialogue.conversation.messages)} messages written to {path}")


def _load(dialogue: Dialogue, argument: str) -> None:
    path = _path(argument, "/load")
    dialogue.conversation.load(path)
    note(f"{len(dialogue.conversation.messages)} messages read from {path}")


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise UsageError(f"{command} needs the name of a file")
    return Path(argument).expanduser()


def _stats(dialogue: Dialogue, _: str) -> None:
    stats = dialogue.conversation.stats
    if not stats:
        raise UsageError("there is no complete answer yet")
    note(f"last answer: {summary(stats[-1])}")
    read = sum(each.prompt_tokens - each.reused_tokens for each in stats)
    note(
        f"all {len(stats)} answers: {read} tokens read, {sum(each.reused_tokens for each in stats)} known, "
        f"{sum(each.thinking_tokens for each in stats)} of thinking, "
        f"{sum(each.answer_tokens for each in stats)} of answer"
    )


def _help(_: Dialogue, __: str) -> None:
    rows = [(f"{name} {command.argument}".strip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    for usage, text in rows:
        note(f"{usage:{width}}  {text}")
    note(HINTS)


def _quit(_: Dialogue, __: str) -> None:
    raise EOFError


COMMANDS = {
    "/thinking": Command(_thinking, "[off|on|low|medium|high]", "how much to think"),
    "/budget": Command(_budget, "[N]", "close the thinking after N tokens"),
    "/system": Command(_system, "[TEXT]", "the system message"),
    "/adapter": Command(_adapter, "[NAME|off]", "which adapter answers"),
    "/undo": Command(_undo, "", "take back the last question and its answer"),
    "/retry": Command(_retry, "", "answer the last question again"),
    "/save": Command(_save, "FILE", "write the conversation to a file"),
    "/load": Command(_load, "FILE", "go on with a saved conversation"),
    "/stats": Command(_stats, "", "what the answers took"),
    "/help": Command(_help, "", "this list"),
    "/quit": Command(_quit, "", "leave, as Ctrl-D does"),
}
HINTS = (
    f"A setting without a value is shown; `{UNSET}` takes it back. A line that ends in \\ goes on; "
    '""" begins and ends a message of many lines. Ctrl-C stops an answer.'
)
