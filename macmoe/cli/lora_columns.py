"""The option `--columns` of all commands that read a data set."""

from __future__ import annotations

from typing import Any

import click

from macmoe.tuning.forms import parse_columns

HELP = "Which column is which field, by comma: instruction=prompt,output=completion."


class Columns(click.ParamType):
    """Columns and the fields that they are, as a dictionary."""

    name = "column=field,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """Read the text of the option."""
        return value if isinstance(value, dict) else parse_columns(value)


columns_option = click.option("--columns", type=Columns(), help=HELP)
