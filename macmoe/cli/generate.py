"""`macmoe generate`: one answer."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from macmoe.chat.messages import check_tools
from macmoe.cli.events import WRITERS, collect, show
from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.options import (
    adapter_option,
    answer_options,
    cache_bits_option,
    cache_option,
    no_kernels_option,
    open_cache,
)
from macmoe.cli.terminal import is_terminal, progress_bar, read_text, write_answer
from macmoe.errors import ChatFormatError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from macmoe.answer import Stats
    from macmoe.chat.events import Event
    from macmoe.conversation import Settings
    from macmoe.generate import Progress
    from macmoe.prompt_cache import PromptCache
    from macmoe.session import Session

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed")
NOT_RAW = ("system", "thinking", "thinking_budget", "max_answer_tokens")


@click.command()
@click.argument("prompt", required=False)
@answer_options
@opening_options
@adapter_option
@click.option(
    "--tools",
    "tools_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A JSON list of tools to declare; calls are printed, never run.",
)
@cache_option
@cache_bits_option
@no_kernels_option
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a chat format.")
@click.option("--hide-thinking", is_flag=True, help="Do not show the thinking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def command(
    *,
    prompt: str | None,
    model_name: str,
    adapter: Path | None,
    settings: Settings,
    tools_file: Path | None,
    cache_file: Path | None,
    cache_bits: int | None,
    raw: bool,
    hide_thinking: bool,
    as_json: bool,
) -> None:
    """Answer one prompt.

    PROMPT `-`, or none where input is piped, reads standard input. The answer goes to stdout, thinking and
    statistics go to stderr. Without options, sampling is as the model's generation_config.json asks.
    """
    tools = read_tools(tools_file)
    if raw:
        _refuse_with_raw(settings, tools)
    if prompt is None and (sys.stdin is None or is_terminal(sys.stdin)):
        raise click.UsageError("Missing argument 'PROMPT'.")
    text = read_text("-" if prompt is None else prompt)
    session = open_session(model_name, adapter)
    with open_cache(session, cache_file, cache_bits) as cache:
        with progress_bar("reading the prompt") as progress:
            if raw:
                events = _complete(session, text, settings, cache=cache, progress=progress)
            else:
                text = text.removesuffix("\n")
                events = session.generate(
                    text, tools=tools, cache=cache, progress=progress, **asdict(settings)
                )
            first = next(events)
        events = chain([first], events)
        if as_json:
            write_answer(json.dumps(collect(events), ensure_ascii=False) + "\n")
        else:
            show(events, WRITERS, hide_thinking=hide_thinking)


def _refuse_with_raw(settings: Settings, tools: list[Any]) -> None:
    if tools or any(getattr(settings, name) is not None for name in NOT_RAW):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in NOT_RAW)
        raise click.UsageError(f"--raw goes without {names} and --tools.")


def _complete(
    session: Session, text: str, settings: Settings, *, cache: PromptCache | None, progress: Progress
) -> Iterator[Event | Stats]:
    sampling = session.sampling(**{name: getattr(settings, name) for name in SAMPLING})
    return session.complete(
        text, max_tokens=settings.max_tokens, sampling=sampling, cache=cache, progress=progress
    )


def read_tools(path: Path | None) -> list[Any]:
    """Read a JSON list of tool declarations; none without a path.

    Raises:
        UsageError: The file is no JSON list.
        ChatFormatError: An item is no declaration.
    """
    if path is None:
        return []
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: invalid JSON ({error}); tools are a JSON list of declarations") from None
    if not isinstance(tools, list):
        raise UsageError(f"{path}: holds a JSON {type(tools).__name__}; tools are a list of declarations")
    for number, tool in enumerate(tools, 1):
        try:
            check_tools([tool])
        except ChatFormatError as error:
            raise ChatFormatError(f"{path}: tool {number}: {error}") from None
    return tools
