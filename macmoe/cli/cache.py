"""`macmoe cache`: the models that were converted at their first use."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from macmoe.cli.terminal import note, size, table
from macmoe.kept import UNKNOWN, Entry, entries, remove
from macmoe.location import cache_folder

HEAD = ("name", "size", "recipe", "converted", "source", "its size", "path")


@click.group()
def command() -> None:
    """List and remove the models that were converted at first use."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(*, as_json: bool) -> None:
    """List the converted models, the largest first, with what they were made from."""
    found = sorted(entries(), key=lambda entry: -entry.nbytes)
    if as_json:
        click.echo(json.dumps([_to_json(entry) for entry in found], indent=2))
        return
    note(f"{cache_folder() or 'nothing is kept (MACMOE_CACHE=off)'}")
    if found:
        click.echo(table([HEAD, *map(_row, found)]))


def _row(entry: Entry) -> tuple[str, ...]:
    known = entry.source != UNKNOWN
    return (
        entry.name,
        size(entry.nbytes),
        entry.recipe if entry.finished else "unfinished",
        entry.converted[:10] or UNKNOWN,
        entry.source,
        (size(entry.source_bytes) if entry.source_bytes else "gone") if known else UNKNOWN,
        str(entry.path),
    )


def _to_json(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "path": str(entry.path), "source_bytes": entry.source_bytes}


@command.command("remove")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all of them.")
@click.option("--source", is_flag=True, help="Also remove the downloads they were made from.")
def remove_(names: tuple[str, ...], *, everything: bool, source: bool) -> None:
    """Remove converted models by name, the begin of one, or their source (gpt-oss-20b).

    Without --source, what they were converted from stays where it is.
    """
    if bool(names) == everything:
        raise click.UsageError("Name models to remove, or --all.")
    for name, both in _all(source=source) if everything else dict.fromkeys(names, source).items():
        note(f"{name}: removed, {size(remove(name, source=both))} freed")


def _all(*, source: bool) -> list[tuple[str, bool]]:
    """Return all names, and whether the source goes, too: only what the hub has can be downloaded again."""
    found = {entry.name: entry.from_hub for entry in entries()}
    return [(name, source and from_hub) for name, from_hub in found.items()]
