"""The settings of a run as options, for the commands that plan it and start it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from macmoe.cli.lora_columns import HELP, Columns
from macmoe.cli.model import VARIABLE
from macmoe.cli.paths import UserPath
from macmoe.tuning.config import (
    LoraOptions,
    OptimizerName,
    RunOptions,
    ScheduleName,
    TrainOptions,
    read_run,
)
from macmoe.tuning.masks import EmptyThinking
from macmoe.tuning.prepare import DataOptions

# Section of the settings, name, type, help. None leaves the value to the file, then to the default.
SETTINGS: tuple[tuple[str, str, Any, str], ...] = (
    ("data", "max_length", int, "The most tokens of a sample, and the places of a row."),
    ("data", "columns", Columns(), HELP),
    ("data", "skip_bad", bool, "Leave bad rows out and count them."),
    ("data", "thinking_share", float, "Repeat the rarer mode until this share thinks."),
    ("data", "flag_share", float, "Write /think and /no_think into this share (Qwen3)."),
    (
        "data",
        "empty_thinking",
        click.Choice(get_args(EmptyThinking)),
        "Answers without reasoning in a mode that thinks.",
    ),
    ("data", "valid_share", float, "Hold this share out for validation."),
    (
        "lora",
        "targets",
        str,
        "Parts (attention, mlp, shared_experts, experts, router) or path patterns, by comma.",
    ),
    ("lora", "rank", int, "Inner width of the adapters."),
    ("lora", "alpha", float, "Strength of the adapters; by default twice the rank."),
    ("lora", "rslora", bool, "Divide alpha by the square root of the rank."),
    ("lora", "dora", bool, "Learn the lengths of rows apart."),
    ("lora", "shared", bool, "Experts share the factor beside the residual stream."),
    ("train", "epochs", int, "Times that every sample is seen."),
    ("train", "steps", int, "Updates in all, instead."),
    ("train", "rows", int, "Rows of a batch."),
    ("train", "accumulate", int, "Batches of an update."),
    ("train", "learning_rate", float, "The highest."),
    ("train", "schedule", click.Choice(get_args(ScheduleName)), "How it falls."),
    ("train", "warmup", int, "Updates until it is reached."),
    ("train", "optimizer", click.Choice(get_args(OptimizerName)), "The optimizer."),
    ("train", "weight_decay", float, "Of the optimizer."),
    ("train", "clip", float, "Largest norm of an update's gradient."),
    ("train", "evaluate_every", int, "Updates between two evaluations."),
    ("train", "save_every", int, "Updates between two savings."),
    ("train", "log_every", int, "Updates between two lines on losses, where no terminal shows a bar."),
    ("train", "patience", int, "Stop after so many evaluations without a better one; 0: never."),
    ("train", "balance", float, "Weight of the loss that keeps experts in use, where routers are adapted."),
    ("train", "sample_prompts", tuple, "A question to answer at every evaluation; may be repeated."),
    ("train", "trackers", str, "Where metrics go as well, by comma: tensorboard, wandb."),
    ("train", "seed", int, "Decides the first factors and the order."),
)
# Where the defaults of a section stand.
SECTIONS = {"data": DataOptions, "lora": LoraOptions, "train": TrainOptions}
# What click makes of a type.
FORMS: dict[Any, dict[str, Any]] = {
    bool: {"is_flag": True, "default": None},
    tuple: {"multiple": True, "metavar": "TEXT"},
}
BY_COMMA = ("targets", "trackers")


def run_options(command: Callable[..., None], *, reads_data: bool = True) -> Callable[..., None]:
    """Add the settings of a run as options; the command receives them as `options`, read and checked.

    Args:
        command: The command.
        reads_data: Whether it has to be told where the data are.
    """
    data_otherwise = {} if reads_data else {"data": {"data": ""}}

    @functools.wraps(command)
    def with_run(model: str | None, data: str | None, config: Path | None, **arguments: Any) -> None:
        given: dict[str, Any] = {"model": model, "data": {"data": data}, "lora": {}, "train": {}}
        given |= {name: arguments.pop(name) for name in ("out", "adapter")}
        for section, name, *_ in SETTINGS:
            value = arguments.pop(name)
            if name in BY_COMMA and value is not None:
                value = value.split(",")
            given[section][name] = None if value == () else value
        named = os.environ.get(VARIABLE)
        otherwise = {**data_otherwise, **({"model": named} if named else {})}
        command(options=read_run(config, given, otherwise), **arguments)

    table = [
        click.option("--config", type=UserPath(), help="A TOML file with these settings."),
        click.option("--model", help="Folder, hub id or tiny:..."),
        click.option("--data", help="A file, a folder or a hub id."),
        click.option(
            "--out",
            type=UserPath(),
            help=f"The folder of the run.{_default_of(RunOptions, 'out')}",
        ),
        click.option(
            "--adapter",
            type=UserPath(),
            help="Begin with this adapter (macmoe, PEFT, mlx-lm), and train what it adapts.",
        ),
    ]
    for section, name, kind, text in SETTINGS:
        flag = FORMS.get(kind, {"type": kind})
        words = f"{text}{_default_of(SECTIONS[section], name)}"
        table.append(click.option(f"--{name.replace('_', '-')}", name, help=words, **flag))
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(table), with_run)


def _default_of(options: type[Any], name: str) -> str:
    """Say the default of a setting as click does; nothing where it is off, empty, or follows from others."""
    default = next(field.default for field in dataclasses.fields(options) if field.name == name)
    if default is None or default is False or default in ((), dataclasses.MISSING):
        return ""
    return f"  [default: {','.join(default) if isinstance(default, tuple) else default}]"
