"""`macmoe completion`: the script with which a shell completes commands, options and models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "fish", "zsh")
VARIABLE = "_MACMOE_COMPLETE"  # click's name for it: what the script sets to ask for completions


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def command(*, shell: str) -> None:
    """Print the script that lets a shell complete commands.

    For zsh or bash, put the first line below into ~/.zshrc or ~/.bashrc (with `bash` there).
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click has all three
    click.echo(
        kind(click.get_current_context().find_root().command, {}, "macmoe", VARIABLE).source(), nl=False
    )
