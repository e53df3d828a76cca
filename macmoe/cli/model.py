"""The option `--model` where a model need not be given, and what is said of the built-in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from macmoe.cli.terminal import note
from macmoe.location import BUILT_IN
from macmoe.names import known_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

VARIABLE = "MACMOE_MODEL"  # an environment variable: the model where none is given
BUILT_IN_MODEL = "tiny:qwen3"
INTRODUCTION = f"{BUILT_IN_MODEL} is a toy that only knows arithmetic; a real model: --model gpt-oss-20b"


def model_option(text: str = "Folder, hub id, short name or tiny:...") -> Callable[..., Callable[..., None]]:
    """Make the option, which a command receives as `model_name`."""
    return click.option(
        "--model",
        "model_name",
        default=BUILT_IN_MODEL,
        envvar=VARIABLE,
        show_default=True,
        show_envvar=True,
        shell_complete=complete,
        help=text,
    )


def introduce_default() -> None:
    """Say in a dim line what the built-in model is, where it answers only because no model was chosen."""
    context = click.get_current_context(silent=True)
    chosen = context is None or context.get_parameter_source("model_name") is not ParameterSource.DEFAULT
    if context and not (chosen or context.params.get("as_json")):
        note(INTRODUCTION)


def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer built-in models, names of published ones, and folders."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - only a shell asks for it

    names = [name for name in (*BUILT_IN, *known_names()) if name.startswith(incomplete)]
    return [*map(CompletionItem, names), CompletionItem(incomplete, type="dir")]
