#!/usr/bin/env python
"""Write docs/commands.md and docs/python.md from the help of the commands and the docstrings of the package.

`make docs` runs it; a test fails while a page is not what it would write.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

import macmoe
from macmoe.cli import cli

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH = 100  # of the help texts
NOTICE = "<!-- Written by `make docs`; changes here get lost. -->\n\n"
COMMANDS = """# Commands

Every command prints its part of this page with `--help`. Answers go to stdout; thinking, progress and
statistics go to stderr. The exit code is 0; 1 after a failure, which is one line on stderr (`macmoe --debug
COMMAND` shows the traceback); 2 after wrong usage; 130 after Ctrl-C. `~` is expanded in every path. A page of
its own lists the [environment variables](environment.md).

Text that is piped in is joined to a prompt: `git diff | macmoe generate "Review this change."` asks the
prompt, a blank line and the diff. In a loop that reads a file itself (`while read`), add `< /dev/null`, or
the first prompt takes the rest of the file. A pipe that stays open and silent, as some programs leave it to
those that they start, is left out after 10 seconds, with a warning; if text comes through it after all, the
command ends with an error. `-` as prompt, or `--file -`, waits as long as it takes.
"""
PYTHON = """# Python

Everything that `import macmoe` offers; what is not on this page may change without notice. All but the errors
are imported at their first use.
"""
# Headings and their names; names that are under none come last.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Models": ("load", "Session"),
    "Conversations": ("Conversation", "Settings", "Message", "Tool", "ToolCall"),
    "Events": ("AnswerText", "ThinkingText", "CommentaryText", "ToolCallEvent", "Stats"),
    "Errors": ("MacmoeError",),
}
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$")
_ITEM = re.compile(r"^    (\*{0,2}[\w.]+(?: \([^)]*\))?): (.*)$")


class Verbatim:
    """An annotation that is shown as it is written, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def all_commands(group: click.Group, path: str = "macmoe") -> Iterator[tuple[str, click.Command]]:
    """Yield how each command is called, and the command; a group comes before what it holds."""
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{path} {name}")
        elif command is not None:
            yield f"{path} {name}", command


def commands_page() -> str:
    """Return the page with the help of every command."""
    parts = [NOTICE + COMMANDS]
    for path, _ in all_commands(cli):
        asked = CliRunner().invoke(
            cli, [*path.split()[1:], "--help"], prog_name="macmoe", terminal_width=WIDTH
        )
        parts.append(f"## {path}\n\n```text\n{asked.stdout.rstrip()}\n```\n")
    return "\n".join(parts)


def python_page() -> str:
    """Return the page with the signature and the docstring of every public name."""
    public = [name for name in macmoe.__all__ if not name.startswith("__")]
    placed = {name for names in SECTIONS.values() for name in names}
    errors = [name for name in public if name not in placed and _is_error(name)]
    others = [name for name in public if name not in placed and not _is_error(name)]
    sections = {**SECTIONS, "Errors": (*SECTIONS["Errors"], *errors), "More": tuple(others)}
    parts = [NOTICE + PYTHON]
    for heading, names in sections.items():
        if names:
            parts += [f"## {heading}\n", *(entry(name, getattr(macmoe, name)) for name in names)]
    return "\n".join(parts)


def _is_error(name: str) -> bool:
    value = getattr(macmoe, name)
    return isinstance(value, type) and issubclass(value, Exception)


def entry(name: str, value: Any) -> str:
    """Return what the page says of a function, or of a class with its public methods."""
    if not isinstance(value, type):
        return f"### {name}\n\n{_code(f'macmoe.{name}', value)}\n{markdown(value)}"
    bases = ", ".join(f"`{base.__name__}`" for base in value.__bases__)
    head = f"Derived from {bases}." if issubclass(value, Exception) else _code(name, value).rstrip()
    parts = [f"### {name}\n\n{head}\n\n{markdown(value)}"]
    for member, definition in vars(value).items():
        plain = definition.__func__ if isinstance(definition, classmethod | staticmethod) else definition
        if member.startswith("_"):
            continue
        if isinstance(plain, property):
            parts.append(f"#### {name}.{member}\n\n{markdown(plain)}")
        elif isinstance(plain, types.FunctionType):
            called = f"{name}.{member}" if plain is not definition else member
            parts.append(f"#### {name}.{member}\n\n{_code(called, plain)}\n{markdown(plain)}")
    return "\n".join(parts)


def _code(name: str, value: Callable[..., Any]) -> str:
    """Return a signature as code, on several lines where one is too short."""
    found = inspect.signature(value)
    shown = [
        parameter.replace(annotation=_shown(parameter.annotation))
        for parameter in found.parameters.values()
        if parameter.name not in {"self", "cls"}
    ]
    back = "" if isinstance(value, type) else _shown(found.return_annotation)
    plain = found.replace(parameters=shown, return_annotation=inspect.Signature.empty)
    line = f"{name}{plain}"
    if len(line) > WIDTH:
        inner = re.sub(r"\((.*)\)$", r"\1", str(plain))
        line = f"{name}(\n    {inner}\n)" if len(inner) < WIDTH - 4 else f"{name}(\n{_lines(plain)})"
    return f"```python\n{line}{f' -> {back!r}' if isinstance(back, Verbatim) else ''}\n```\n"


def _lines(signature: inspect.Signature) -> str:
    """Write one parameter a line; the star that ends the positional ones stands alone."""
    lines, named = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not named:
            lines, named = [*lines, "    *,\n"], True
        lines.append(f"    {parameter},\n")
    return "".join(lines)


def _shown(annotation: Any) -> Any:
    if annotation is inspect.Signature.empty:
        return annotation
    return Verbatim(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))


def markdown(value: Any) -> str:
    """Return a docstring as markdown: sections become headed lists, code stays code."""
    lines: list[str] = []
    inside = False
    for line in (inspect.getdoc(value) or "").splitlines():
        section, item = _SECTION.match(line), _ITEM.match(line) if inside else None
        if section:
            inside = True
            lines += [f"**{section[1]}**", ""]
        elif item:
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            inside = inside and (line.startswith(" ") or not line)
            lines.append(f"  {line.strip()}" if inside and line else line)
    return "\n".join(lines).rstrip() + "\n"


PAGES: Mapping[str, Callable[[], str]] = {"commands.md": commands_page, "python.md": python_page}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
