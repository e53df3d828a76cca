"""`macmoe inspect`: architectures side by side."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import click

from macmoe.cli.loading import offline_option
from macmoe.cli.model import complete
from macmoe.cli.options import cache_bits_option
from macmoe.cli.terminal import is_terminal, size, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option, find_config
from macmoe.inspection import Architecture, describe
from macmoe.memory import KEEP, Estimator
from macmoe.opening import split_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNKNOWN = NONE = "-"
TOO_LONG = "too long"  # a context that the positions do not reach
STORED_BITS = 16  # of a weight that a recipe does not pack


@click.command()
@offline_option
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, shell_complete=complete)
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(min=1),
    multiple=True,
    default=(32_768, 131_072),
    show_default=True,
    help="Show the size of the KV cache at this context length; repeatable.",
)
@cache_bits_option
@allow_unknown_keys_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    *, models: tuple[str, ...], contexts: tuple[int, ...], cache_bits: int | None, as_json: bool
) -> None:
    """Compare architectures, parameters and memory side by side.

    MODEL is a folder, a hub id, a built-in model (tiny:qwen3), or the name of a published model such as
    gpt-oss-20b, qwen3-30b-a3b or deepseek-v3, for which nothing is downloaded. With a recipe behind a colon
    (qwen3-30b-a3b:4bit) it is described as that would pack it.
    """
    described = [_described(name, cache_bits) for name in models]
    if as_json:
        click.echo(json.dumps([to_json(model, contexts) for model in described], indent=2))
    else:
        width = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None
        click.echo("\n\n".join(tables([to_text(model, contexts) for model in described], width)))


def tables(columns: Sequence[Mapping[str, str]], width: int | None) -> list[str]:
    """Return tables with as many models side by side as there is room for; without a width, one table."""
    found: list[str] = []
    shown: list[Mapping[str, str]] = []
    for column in columns:
        wider = _side_by_side([*shown, column])
        if shown and width and len(wider.partition("\n")[0]) > width:
            shown, wider = [column], _side_by_side([column])
        else:
            shown, found = [*shown, column], found[:-1]
        found.append(wider)
    return found


def _side_by_side(columns: Sequence[Mapping[str, str]]) -> str:
    return table([(label, *(column[label] for column in columns)) for label in columns[0]])


def _described(name: str, cache_bits: int | None) -> Architecture:
    """Describe a model; with a recipe behind its name, as large as it would be stored then."""
    plain, recipe = split_recipe(name)
    config, stored = find_config(plain)
    if recipe != KEEP:
        stored = Estimator(config, name, STORED_BITS).need(recipe).weights
    return describe(name, config, stored, cache_bits)


def to_text(model: Architecture, contexts: tuple[int, ...]) -> dict[str, str]:
    """Return one column of the table."""
    parameters = model.parameters
    bits = model.stored_bits
    return {
        "": model.name,
        "family": model.family,
        "layers x width": f"{model.layers} x {model.dim}",
        "vocabulary": f"{model.vocab:,}",
        "attention": model.attention,
        "sliding window": _windows(model),
        "positions": model.positions,
        "longest context": f"{model.max_positions:,}",
        "experts": _experts(model),
        "parameters": f"{parameters.total:,}",
        "  without embedding and output": f"{parameters.body:,}",
        "  active per token": f"{parameters.active:,}",
        "  active, embedding included": f"{parameters.active_with_embedding:,}",
        "  multi-token prediction, apart": f"{parameters.mtp:,}" if parameters.mtp else NONE,
        "stored bits per weight": f"{bits:.2f}" if bits else UNKNOWN,
        "stored": size(model.stored_bytes) if model.stored_bytes else UNKNOWN,
        f"cache per token ({_precision(model)})": f"{model.cache_bytes_per_token:,} B",
        **{f"cache at {context:,}": _cache(model, context) for context in contexts},
    }


def _cache(model: Architecture, context: int) -> str:
    return size(model.cache_bytes(context)) if context <= model.max_positions else TOO_LONG


def _precision(model: Architecture) -> str:
    return "bf16" if model.cache_bits is None else f"{model.cache_bits} bits"


def _windows(model: Architecture) -> str:
    windows = model.windows
    return f"{windows[0]} in {len(windows)} of {model.layers} layers" if windows else NONE


def _experts(model: Architecture) -> str:
    if not model.experts:
        return NONE
    shared = f" + {model.shared_experts} shared" if model.shared_experts else ""
    return f"{model.top_k} of {model.experts}{shared}"


def to_json(model: Architecture, contexts: tuple[int, ...]) -> dict[str, object]:
    """Return the same figures as numbers."""
    parameters = model.parameters
    return {
        "name": model.name,
        "family": model.family,
        "layers": model.layers,
        "dim": model.dim,
        "vocab": model.vocab,
        "attention": model.attention,
        "positions": model.positions,
        "max_positions": model.max_positions,
        "sliding_windows": model.windows,
        "experts": model.experts,
        "shared_experts": model.shared_experts,
        "top_k": model.top_k,
        "parameters": parameters.total,
        "parameters_body": parameters.body,
        "parameters_active": parameters.active,
        "parameters_active_with_embedding": parameters.active_with_embedding,
        "parameters_mtp": parameters.mtp,
        "stored_bytes": model.stored_bytes and round(model.stored_bytes),
        "stored_bits_per_weight": model.stored_bits,
        "cache_bits": model.cache_bits,
        "cache_bytes_per_token": model.cache_bytes_per_token,
        "cache_bytes": {str(context): model.cache_bytes(context) for context in contexts},
    }
