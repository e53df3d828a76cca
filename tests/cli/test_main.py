"""The frame of the command line: help, version, exit codes, one line per failure."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import click
import pytest

from macmoe import __version__
from macmoe.__main__ import main
from macmoe.cli import COMMANDS, MLX_INCOMPLETE, cli
from macmoe.cli.options import Finite
from macmoe.errors import ConfigError
from tests.conftest import ROOT

HELP = """\
Usage: macmoe [OPTIONS] COMMAND [ARGS]...

  Run GPT-OSS, Qwen3 and DeepSeek-V3 on MLX.

Options:
  --version   Show the version and exit.
  --debug     Show the traceback of a failure.
  -h, --help  Show this message and exit.

Commands:
  generate    Answer one prompt.
  chat        Have a conversation.
  convert     Convert a checkpoint to the macmoe layout.
  pull        Download and convert a model ahead of its first use.
  cache       List and remove the models that were converted at first use.
  inspect     Compare architectures, parameters and memory side by side.
  score       Measure log-probabilities and perplexity of a text.
  bench       Measure speed, memory and kernels, also beside mlx-lm.
  doctor      Describe this machine, and check the kernels on it.
  lora        Fine-tune with low-rank adapters.
  completion  Print the script that lets a shell complete commands.

  Examples:
    macmoe chat --model gpt-oss-20b
    macmoe generate --model qwen3-30b-a3b "Why is the sky blue?"
    git diff | macmoe generate --model gpt-oss-20b "Review this change."
"""


def shell(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "macmoe", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.fixture
def failing(monkeypatch):
    """Return a function that makes `macmoe inspect` raise an error."""

    def fail_with(error):
        @click.command()
        def command():
            raise error

        monkeypatch.setattr(cli, "get_command", lambda *_: command)

    return fail_with


def test_help(macmoe):
    for option in ("--help", "-h"):
        result = macmoe(option)
        assert (result.exit_code, result.stdout) == (0, HELP)


def test_version(macmoe):
    result = macmoe("--version")
    assert (result.exit_code, result.stdout) == (0, f"macmoe {__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_starts_with_its_line(macmoe, name):
    result = macmoe(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.split("\n\n")[1].strip() == COMMANDS[name][1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["frobnicate"], "Error: No such command 'frobnicate'."),
        (["generat"], "Error: No such command 'generat'. Did you mean 'generate'?"),
        (["comp"], "Error: No such command 'comp'. Did you mean 'completion'?"),
        (["run"], "Error: No such command 'run'. Did you mean 'chat'?"),
        (["lora", "trian"], "Error: No such command 'trian'. Did you mean 'train'?"),
        (["cache", "lst"], "Error: No such command 'lst'. Did you mean 'list'?"),
        (["inspect"], "Error: Missing argument 'MODEL...'."),
        (
            ["inspect", "qwen3-8b", "--contxt", "1"],
            "Error: No such option '--contxt'. Did you mean '--context'?",
        ),
        (
            ["inspect", "qwen3-8b", "--context", "0"],
            "Error: Invalid value for '--context': 0 is not in the range x>=1.",
        ),
        (
            ["generate", "hi", "--thinking", "loud"],
            "Error: Invalid value for '--thinking': 'loud' is not one of",
        ),
        (["generate", "hi", "--raw", "--system", "x"], "Error: --raw goes without --system"),
        (["score", "tiny:qwen3"], "Error: Give either TEXT, --file FILE or --tokens FILE."),
        (["convert", "somewhere"], "Error: Missing option '--out' (or '--dry-run')."),
        (
            ["convert", "somewhere", "--bits-per-weight", "nan"],
            "Error: Invalid value for '--bits-per-weight': nan is no finite number",
        ),
        (
            ["generate", "hi", "--temperature", "inf"],
            "Error: Invalid value for '--temperature': inf is no finite number",
        ),
    ],
)
def test_wrong_usage_exits_with_2(macmoe, arguments, line):
    result = macmoe(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: macmoe ")
    assert result.stderr.splitlines()[-1].startswith(line)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "lora"])
def test_numbers_are_finite(name):
    command = cli.get_command(click.Context(cli), name)
    kinds = [option.type for option in command.params]
    assert all(isinstance(kind, Finite) for kind in kinds if isinstance(kind, click.types.FloatParamType))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("config.json: unknown key 'a'"), "error: config.json: unknown key 'a'\n"),
        (ConfigError("two\nlines"), "error: two lines\n"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied\n"),
        (OSError("disk on fire"), "error: input or output: disk on fire\n"),
        (
            ImportError("libmlx.so: cannot open shared object file: No such file or directory"),
            f"error: {MLX_INCOMPLETE}\n",
        ),
        (KeyError("q"), "error: unexpected KeyError: 'q' (a bug; `macmoe --debug ...` shows where)\n"),
    ],
)
def test_failure_is_one_line_and_exit_code_1(macmoe, failing, error, line):
    failing(error)
    result = macmoe("inspect")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_debug_shows_the_traceback():
    result = shell("--debug", "inspect", "gpt-oss-21b")
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback (most recent call last):")


def test_without_debug_there_is_no_traceback():
    result = shell("inspect", "gpt-oss-21b")
    line = "error: gpt-oss-21b: not a folder and not a known model; did you mean 'gpt-oss-20b'?\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", line)


def test_interrupt_exits_with_130(macmoe, failing):
    failing(KeyboardInterrupt())
    result = macmoe("inspect")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


def test_interrupt_during_the_imports_exits_with_130(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("macmoe.cli.cli", interrupted)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130


def with_streams(redirection, *arguments, start=("-m", "macmoe")):
    command = shlex.join([sys.executable, *start, *arguments])
    return subprocess.run(
        ["sh", "-c", f"{command} {redirection}"], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("start", [("-m", "macmoe"), ("-c", "from macmoe.__main__ import main; main()")])
@pytest.mark.parametrize("redirection", ["<&-", "<&- 2>&-"])
def test_closed_input_and_errors_change_no_answer(redirection, start):
    asked = ("generate", "What is 17 + 25?", "--temperature", "0", "--thinking", "off")
    result = with_streams(redirection, *asked, start=start)
    assert (result.returncode, result.stdout) == (0, "The answer is 42.\n")


def test_closed_input_is_empty():
    result = with_streams("<&-", "generate", "-")
    assert result.returncode == 1
    assert result.stderr == "error: the prompt is empty: there is nothing to answer\n"


@pytest.mark.parametrize("arguments", [("generate", "What is 1 + 2?"), ("inspect", "qwen3-8b"), ("--help",)])
def test_nothing_gets_lost_in_a_closed_output(arguments):
    result = with_streams(">&-", *arguments)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: standard output is closed")
    assert "Traceback" not in result.stderr


def test_closed_pipe_is_quiet():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "macmoe", "inspect", "qwen3-8b"],
            cwd=ROOT,
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert result.returncode not in (0, -signal.SIGSEGV)
    assert result.stderr == b""


def test_warnings_of_the_layers_below_are_marked():
    program = (
        "import logging, click, macmoe.cli as c\n"
        "log = logging.getLogger('macmoe.checkpoint')\n"
        "c.cli.get_command = lambda *_: click.Command('x', callback=lambda: log.warning('NaN in w'))\n"
        "c.cli()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "x"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "warning: NaN in w\n")
