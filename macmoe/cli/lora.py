"""`macmoe lora`: the group of the fine-tuning commands."""

from __future__ import annotations

import click

from macmoe.cli import LazyGroup

TABLE = {
    "preview": ("macmoe.cli.lora_preview", "Show what a model would learn from a data set."),
    "plan": ("macmoe.cli.lora_plan", "Count trainable parameters and estimate memory."),
    "train": ("macmoe.cli.lora_train", "Train an adapter."),
    "export": ("macmoe.cli.lora_export", "Write an adapter in PEFT's form."),
    "import": ("macmoe.cli.lora_import", "Take over an adapter of PEFT or mlx-lm."),
    "examine": ("macmoe.cli.lora_examine", "Measure how a model keeps its modes and answers questions."),
    "fuse": ("macmoe.cli.lora_fuse", "Write a model with the adapter in its weights."),
    "distill": ("macmoe.cli.lora_distill", "Make thinking data with the model itself."),
}


class LoraGroup(LazyGroup):
    """The fine-tuning commands."""

    table = TABLE
    prefix = "lora "


@click.group(cls=LoraGroup)
def command() -> None:
    """Fine-tune with low-rank adapters."""
