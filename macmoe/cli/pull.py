"""`macmoe pull`: download and convert a model ahead of its first use."""

from __future__ import annotations

import click

from macmoe.cli.loading import chosen, force_option, quantize_option, stages
from macmoe.cli.terminal import note, size
from macmoe.converted import stored_bytes
from macmoe.opening import Wish, pull

EXAMPLE = """\b
macmoe pull gpt-oss-20b
macmoe pull qwen3-30b-a3b --quantize 4bit
"""


@click.command(epilog=EXAMPLE)
@click.argument("model_name", metavar="MODEL")
@quantize_option
@force_option
def command(*, model_name: str) -> None:
    """Download and convert a model ahead of its first use.

    MODEL is a short name (gpt-oss-20b, qwen3-30b-a3b, ...), a hub id or a folder. What is on this machine is
    used; the hub is asked for a newer version. What was stopped is continued by the same command.
    """
    with stages() as stage:
        opened = pull(model_name, Wish(announce=note, converting=stage("converting"), **chosen()))
    stored = size(stored_bytes(opened.folder))
    click.echo(f"{opened.folder}")
    note(f"{model_name}: ready, {stored}")
