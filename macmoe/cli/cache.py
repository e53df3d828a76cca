"""`macmoe cache`: the models that were converted at their first use."""

from __future__ import annotations

import click

from macmoe.cli.terminal import note, size, table
from macmoe.converted import entries, remove
from macmoe.location import cache_folder


@click.group()
def command() -> None:
    """List and remove the models that were converted at first use."""


@command.command("list")
def list_() -> None:
    """List the converted models, the largest first."""
    found = sorted(entries(), key=lambda entry: -entry.nbytes)
    note(f"{cache_folder() or 'nothing is kept (MACMOE_CACHE=off)'}")
    if found:
        rows = [
            (entry.name, entry.source, size(entry.nbytes), "" if entry.finished else "unfinished")
            for entry in found
        ]
        click.echo(table(rows))


@command.command("remove")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all of them.")
def remove_(names: tuple[str, ...], *, everything: bool) -> None:
    """Remove converted models by name; what they were converted from stays where it is."""
    if bool(names) == everything:
        raise click.UsageError("Name models to remove, or --all.")
    for name in dict.fromkeys(entry.name for entry in entries()) if everything else names:
        note(f"{name}: removed, {size(remove(name))} free")
