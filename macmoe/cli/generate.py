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
from macmoe.cli.paths import UserPath
from macmoe.cli.terminal import is_terminal, progress_bar, write_answer
from macmoe.cli.texts import file_option, given_text, read_file, refuse_late_text
from macmoe.cli.unknown_keys import allow_unknown_keys_option
from macmoe.errors import ChatFormatError, UsageError
from macmoe.files import refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from macmoe.answer import Stats
    from macmoe.chat.events import Event
    from macmoe.conversation import Settings
    from macmoe.generate import Progress
    from macmoe.prompt_cache import PromptCache
    from macmoe.session import Session

PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", *PENALTIES, "seed")
NOT_RAW = ("system", "thinking", "thinking_budget", "max_answer_tokens")


@click.command()
@click.argument("prompt", required=False)
@file_option("Read the prompt from a file, after PROMPT if both are given; repeatable.")
@answer_options
@opening_options
@adapter_option
@click.option(
    "--tools",
    "tools_file",
    type=UserPath(dir_okay=False),
    help="JSON file with a list of tools; calls are printed, never run.",
)
@cache_option
@cache_bits_option
@allow_unknown_keys_option
@no_kernels_option
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without a chat template.")
@click.option("--hide-thinking", is_flag=True, help="Do not show the thinking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when done.")
def command(
    *,
    prompt: str | None,
    files: tuple[Path, ...],
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

    Text piped in is appended to PROMPT after a blank line; without PROMPT, or with `-`, it is the prompt. The
    answer goes to stdout, thinking and statistics go to stderr. By default, sampling follows the model's
    generation_config.json.
    """
    tools = read_tools(tools_file)
    if raw:
        _refuse_with_raw(settings, tools)
    if prompt is None and not files and is_terminal(sys.stdin):
        raise click.UsageError("Missing argument 'PROMPT'.")
    text = given_text(prompt, files)
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
    refuse_late_text()


def _refuse_with_raw(settings: Settings, tools: list[Any]) -> None:
    if tools or any(getattr(settings, name) is not None for name in NOT_RAW):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in NOT_RAW)
        raise click.UsageError(f"--raw goes without {names} and --tools.")


def _complete(
    session: Session, text: str, settings: Settings, *, cache: PromptCache | None, progress: Progress
) -> Iterator[Event | Stats]:
    sampling = session.sampling(**{name: getattr(settings, name) for name in SAMPLING})
    return session.complete(
        text,
        max_tokens=settings.max_tokens,
        sampling=sampling,
        stop=settings.stop,
        cache=cache,
        progress=progress,
    )


def read_tools(path: Path | None) -> list[Any]:
    """Read a JSON list of tool declarations; none without a path.

    Raises:
        UsageError: The file is no JSON list.
        ChatFormatError: An item is no declaration.
    """
    if path is None:
        return []
    refuse_pointer(path, UsageError)
    try:
        tools = json.loads(read_file(path))
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
