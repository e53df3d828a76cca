"""The commands of a chat: lines that begin with a slash."""

from __future__ import annotations

import functools
import gc
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import mlx.core as mx

from macmoe.chat.messages import Message
from macmoe.cli.clipboard import copy
from macmoe.cli.events import details, endings, summary
from macmoe.cli.loading import open_session
from macmoe.cli.options import answer_options
from macmoe.cli.terminal import note, table
from macmoe.config import nearest
from macmoe.conversation import Settings
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
    name = ALIASES.get(name, name)
    if name not in COMMANDS:
        hint = nearest(name, [*COMMANDS, *ALIASES]) or "; /help lists the commands"
        raise UsageError(f"{name} is no command{hint} (a message may begin with a space)")
    COMMANDS[name].run(dialogue, argument.strip())


@functools.cache
def _options() -> dict[str, click.Parameter]:
    """Return what the command line reads the settings with, by name."""
    parameters = click.command()(answer_options(lambda **_: None)).params
    named = {parameter.name: parameter for parameter in parameters}
    return {field.name: named[field.name] for field in fields(Settings)}


def _assign(dialogue: Dialogue, name: str, text: str) -> None:
    """Change a setting to what a text says, or take it back, and show it; without a text only show it.

    Raises:
        UsageError: The command line would refuse it, too.
        ChatFormatError: The model has no such thinking.
    """
    if text:
        if name == "thinking" and text != UNSET:
            dialogue.session.format.opening(text)  # type: ignore[arg-type]  refuses what the model does not have
        value = getattr(Settings(), name) if text == UNSET else _value(name, text)
        conversation = dialogue.conversation
        conversation.settings = replace(conversation.settings, **{name: value})
    note(f"{name.replace('_', ' ')}: {_shown(dialogue, name)}")


def _value(name: str, text: str) -> Any:
    option = _options()[name]
    context = click.Context(click.Command(name))
    try:
        return option.type_cast_value(context, (text,) if option.multiple else text)
    except click.BadParameter as error:
        raise UsageError(f"{name}: {error.message.rstrip('.')}; `{UNSET}` takes a setting back") from None


def _shown(dialogue: Dialogue, name: str) -> str:
    value = getattr(dialogue.conversation.settings, name)
    if value in (None, ()):
        return "not set"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _set(dialogue: Dialogue, argument: str) -> None:
    if not argument:
        note(table([(name, _shown(dialogue, name)) for name in _options()]))
        return
    given, _, text = argument.partition(" ")
    name = given.lstrip("-").replace("-", "_")
    if name not in _options():
        hint = nearest(name, list(_options())) or f"; there are {', '.join(_options())}"
        raise UsageError(f"there is no setting '{given}'{hint}")
    _assign(dialogue, name, text.strip())


def _thinking(dialogue: Dialogue, argument: str) -> None:
    _assign(dialogue, "thinking", argument)


def _budget(dialogue: Dialogue, argument: str) -> None:
    _assign(dialogue, "thinking_budget", argument)


def _system(dialogue: Dialogue, argument: str) -> None:
    _assign(dialogue, "system", argument)


def _model(dialogue: Dialogue, argument: str) -> None:
    if argument:
        session = open_session(argument)
        session.format.opening(dialogue.conversation.settings.thinking)  # refuses what it cannot do
        dialogue.conversation.move(session.generate, session.make_cache(dialogue.cache_bits))
        dialogue.session, dialogue.model = session, argument
        if dialogue.adapters:
            note(f"without the adapters {', '.join(dialogue.adapters)}, which fit the model before")
        dialogue.adapters, dialogue.adapter = {}, None
        gc.collect()
        mx.clear_cache()  # else the memory of the model before stays with MLX
    note(f"model: {dialogue.model}")


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


def _clear(dialogue: Dialogue, _: str) -> None:
    dialogue.conversation.clear()
    note("a new conversation")


def _tokens(dialogue: Dialogue, _: str) -> None:
    session, conversation = dialogue.session, dialogue.conversation
    settings = conversation.settings
    system = [] if settings.system is None else [Message("system", settings.system)]
    used = 0
    if messages := [*system, *conversation.messages]:
        segments = session.format.render(
            messages, tools=conversation.declarations, thinking=settings.thinking
        )
        used = len(session.tokenizer.encode_segments(segments))
    longest = session.model.config.max_position_embeddings
    note(
        f"{used:,} of {longest:,} tokens ({used / longest:.0%}); there is room for {max(longest - used, 0):,}"
    )


def _copy(dialogue: Dialogue, _: str) -> None:
    answers = [message.content for message in dialogue.conversation.messages if message.role == "assistant"]
    if not answers:
        raise UsageError("there is no answer yet")
    copy(answers[-1])
    note(f"copied: {len(answers[-1]):,} characters")


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
    for line in (details(stats[-1]), *endings(stats[-1])):
        note(line)
    read = sum(each.prompt_tokens - each.reused_tokens for each in stats)
    note(
        f"all {len(stats)} answers: {read} tokens read, {sum(each.reused_tokens for each in stats)} known, "
        f"{sum(each.thinking_tokens for each in stats)} of thinking, "
        f"{sum(each.answer_tokens for each in stats)} of answer"
    )


def completions() -> list[str]:
    """Return what a line may begin with."""
    return [*COMMANDS, *ALIASES, *(f"/set {name}" for name in _options())]


def _help(_: Dialogue, __: str) -> None:
    rows = [(f"{name} {command.argument}".strip(), command.help) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    for usage, text in rows:
        note(f"{usage:{width}}  {text}")
    for hint in HINTS:
        note(hint)


def _quit(_: Dialogue, __: str) -> None:
    raise EOFError


COMMANDS = {
    "/clear": Command(_clear, "", "begin a new conversation (also /new)"),
    "/model": Command(_model, "[NAME]", "go on with another model"),
    "/set": Command(_set, "[NAME VALUE]", "temperature, max_tokens and other settings"),
    "/thinking": Command(_thinking, "[off|on|low|medium|high]", "how much to think"),
    "/budget": Command(_budget, "[N]", "close the thinking after N tokens"),
    "/system": Command(_system, "[TEXT]", "the system message"),
    "/adapter": Command(_adapter, "[NAME|off]", "which adapter answers"),
    "/undo": Command(_undo, "", "take back the last question and its answer"),
    "/retry": Command(_retry, "", "answer the last question again"),
    "/save": Command(_save, "FILE", "write the conversation to a file"),
    "/load": Command(_load, "FILE", "go on with a saved conversation"),
    "/copy": Command(_copy, "", "copy the last answer to the clipboard"),
    "/tokens": Command(_tokens, "", "how much of the context is used"),
    "/stats": Command(_stats, "", "what the answers took"),
    "/help": Command(_help, "", "this list"),
    "/quit": Command(_quit, "", "leave, as Ctrl-D does (also /exit, /bye)"),
}
ALIASES = {"/new": "/clear", "/exit": "/quit", "/bye": "/quit"}
HINTS = (
    f"A setting without a value is shown; `{UNSET}` takes it back.",
    'A line that ends in \\ goes on; """ begins and ends a message of many lines.',
    "Ctrl-C stops an answer; pressed again, it leaves.",
)
