"""Every command of the command line, for the tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import click


def all_commands(group: click.Group, path: str = "macmoe") -> Iterator[tuple[str, click.Command]]:
    """Yield how a command is called, and the command; groups come before what they hold."""
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command
