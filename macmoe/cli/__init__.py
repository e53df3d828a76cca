"""The `macmoe` command: a lazy click group, and the one place where failures become a line and an exit code.

Nothing heavy is imported before a command runs; each command lives in a module of its own. Answers go to
stdout; thinking, progress and statistics go to stderr.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING

import click

from macmoe import __version__
from macmoe.cli.examples import epilog
from macmoe.cli.terminal import is_terminal, printable
from macmoe.errors import MacmoeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "Failure", "cli", "describe"]

# Name: (module, help line). Listing the commands imports none of them.
COMMANDS = {
    "generate": ("macmoe.cli.generate", "Answer one prompt."),
    "chat": ("macmoe.cli.chat", "Have a conversation."),
    "convert": ("macmoe.cli.convert", "Convert a checkpoint to the macmoe layout."),
    "pull": ("macmoe.cli.pull", "Download and convert a model ahead of its first use."),
    "cache": ("macmoe.cli.cache", "List and remove the models that were converted at first use."),
    "inspect": ("macmoe.cli.inspect", "Compare architectures, parameters and memory side by side."),
    "score": ("macmoe.cli.score", "Measure log-probabilities and perplexity of a text."),
    "bench": ("macmoe.cli.bench", "Measure speed, memory and kernels, also beside mlx-lm."),
    "doctor": ("macmoe.cli.doctor", "Describe this machine, and check the kernels on it."),
    "lora": ("macmoe.cli.lora", "Fine-tune with low-rank adapters."),
    "completion": ("macmoe.cli.completion", "Print the script that lets a shell complete commands."),
}
# What other tools call it, or where it is looked for: what it is called here.
HABITS = {
    "ask": "generate",
    "benchmark": "bench",
    "download": "pull",
    "fine-tune": "lora train",
    "finetune": "lora train",
    "fuse": "lora fuse",
    "list": "cache list",
    "ls": "cache list",
    "perplexity": "score",
    "quantize": "convert",
    "remove": "cache remove",
    "rm": "cache remove",
    "run": "chat",
    "show": "inspect",
    "train": "lora train",
}
MLX_INCOMPLETE = (
    "MLX has no back end here, so no model can run; install macmoe[cpu], or macmoe[cuda] for an NVIDIA GPU"
)
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Failure(click.ClickException):
    """An expected failure: one line on stderr, exit code 1."""

    def show(self, file: object = None) -> None:
        """Print the line; terminals show the first word in red."""
        click.echo(f"{click.style('error:', fg='red')} {self.format_message()}", err=True)


class LazyGroup(click.Group):
    """A group that imports a command when it runs.

    Attributes:
        table: The commands: name -> (module, help line).
        habits: Names from elsewhere -> what is meant.
        prefix: How the group is called, with a space behind it.
    """

    table: Mapping[str, tuple[str, str]] = COMMANDS
    habits: Mapping[str, str] = {}
    prefix = ""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command; what runs is its `command`, with examples below its help."""
        if cmd_name not in self.table:
            return None
        module, _ = self.table[cmd_name]
        command = importlib.import_module(module).command
        _add_examples(command, self.prefix + cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a name that is none gets the one that may be meant."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{name}'.{self._meant(name)}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete commands from the table alone."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only a shell asks for it

        lines = {name: line for name, (_, line) in self.table.items() if name.startswith(incomplete)}
        found = [CompletionItem(name, help=line) for name, line in lines.items()]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def _meant(self, name: str) -> str:
        import difflib  # noqa: PLC0415 - only a wrong name needs it

        usual = [self.habits[name]] if name in self.habits else []
        longer = [each for each in self.table if each.startswith(name)]
        found = [*usual, *longer, *difflib.get_close_matches(name, self.table, n=1)]
        return f" Did you mean '{found[0]}'?" if found else ""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])


def _add_examples(command: click.Command, path: str) -> None:
    command.epilog = epilog(path)
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        _add_examples(below, f"{path} {name}")


class Macmoe(LazyGroup):
    """The outermost group, which turns what the layers below raise into exit codes."""

    habits = HABITS

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; without --debug no failure shows a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click prints these, and is quiet about a closed pipe
        except Exception as error:  # the last handler before the user
            if ctx.params["debug"]:
                raise
            raise Failure(describe(error)) from error


def describe(error: Exception) -> str:
    """Describe a failure in one line; what nobody foresaw says how to see more."""
    if isinstance(error, MacmoeError):
        text = str(error)
    elif isinstance(error, ImportError) and "libmlx" in str(error):
        text = MLX_INCOMPLETE
    elif isinstance(error, OSError):
        text = f"{error.filename or 'input or output'}: {error.strerror or error}"
    else:
        text = f"unexpected {type(error).__name__}: {error} (a bug; `macmoe --debug ...` shows where)"
    return printable(" ".join(text.split()))


class OneLine(logging.Formatter):
    """Writes a message behind its level, as errors are written."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line such as `warning: ...`."""
        return printable(f"{record.levelname.lower()}: {record.getMessage()}")


@click.group(cls=Macmoe, epilog=epilog(""), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="macmoe", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def cli(debug: bool) -> None:  # noqa: ARG001 - LazyGroup.invoke reads it from the context
    """Run GPT-OSS, Qwen3 and DeepSeek-V3 on MLX."""
    if logging.lastResort is not None:  # what the layers below log and nobody else has a handler for
        logging.lastResort.setFormatter(OneLine())
        logging.lastResort.setLevel(logging.INFO)
        logging.getLogger("macmoe").setLevel(logging.INFO)
    if not is_terminal(sys.stderr):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
