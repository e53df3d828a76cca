"""`macmoe chat`: in a pipe with exact output, and on a terminal of its own with keys at any moment."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import macmoe as macmoe_package
from macmoe.adapters.attach import attach, detach, select, taken
from macmoe.adapters.files import save_adapter
from macmoe.adapters.lora import LoraSpec
from macmoe.cli.slash import COMMANDS
from macmoe.cli.terminal import printable
from tests.cli.conftest import SCRIPTED
from tests.cli.scripted_chat import EVIL, TOOL_FILE, scripted
from tests.conftest import ROOT

TOOL = ("--tool", str(TOOL_FILE))


@pytest.fixture
def play(monkeypatch):
    """Return a function that lets `macmoe.load` give a scripted session."""
    return lambda scenario: monkeypatch.setattr("macmoe.load", lambda *_, **__: scripted(scenario))


def test_each_line_of_a_pipe_is_a_turn_and_only_answers_go_to_stdout(macmoe):
    lines = "What is 17 + 25?\n\n/thinking off\nWhat is 3 + 4?\n/stats\n"
    result = macmoe("chat", "--temperature", "0", stdin=lines)
    assert result.exit_code == 0
    assert result.stdout == "The answer is 42.\nThe answer is 7.\n"
    thinking, *notes = result.stderr.partition("thinking: off\n")[::2]
    assert thinking.endswith("=42\n")
    assert notes[0].startswith("last answer: ")
    assert "all 2 answers: " in notes[0]


def test_a_message_may_have_many_lines(macmoe, play, monkeypatch):
    play("add")
    sent = []
    monkeypatch.setattr(
        "macmoe.conversation.Conversation.send", lambda _, text, **__: sent.append(text) or _none()
    )
    macmoe("chat", stdin='one \\\ntwo\n"""three\n\n/four"""\n"""five"""\n /six\n')
    assert sent == ["one \ntwo", "three\n\n/four", "five", "/six"]


def _none():
    yield from ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/undoo", "/undoo is no command; did you mean '/undo'? (a message may begin with a space)"),
        ("/xyz", "/xyz is no command; /help lists the commands"),
        ("/undo", "there is no question yet"),
        ("/retry", "there is no question yet"),
        ("/stats", "there is no complete answer yet"),
        ("/save", "/save needs the name of a file"),
        ("/load nowhere.json", "nowhere.json: No such file or directory"),
        ("/load README.md", "README.md: not a saved conversation"),
        ("/save README.md", "README.md: not a saved conversation"),
        ("/thinking loud", "DeepSeek-V3.1 has no thinking='loud'; it accepts off, on, low, medium, high"),
        ("/budget many", "thinking_budget: 'many' is not a valid integer range; `-` takes a setting back"),
        ("/set top_p 2", "top_p: 2.0 is not in the range 0<x<=1; `-` takes a setting back"),
        ("/set temperature nan", "temperature: nan is no finite number; `-` takes a setting back"),
        ("/set temprature 1", "there is no setting 'temprature'; did you mean 'temperature'?"),
        ("/set thinking loud", "DeepSeek-V3.1 has no thinking='loud'"),
        ("/copy", "there is no answer yet"),
        ("/exot", "/exot is no command; did you mean '/exit'?"),
        ('"""never ends', "the input ends inside a message; it was not sent"),
    ],
)
def test_a_wrong_command_ends_a_pipe_with_one_line(macmoe, play, monkeypatch, line, words):
    monkeypatch.chdir(ROOT)
    play("add")
    result = macmoe("chat", stdin=f"{line}\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {words}")
    assert result.stderr.count("\n") == 1


def test_settings_are_shown_changed_and_taken_back(macmoe, play):
    play("add")
    lines = [
        "/thinking",
        "/thinking low",
        "/thinking -",
        "/budget 8",
        "/budget -",
        "/system Be brief.",
        "/system -",
    ]
    result = macmoe("chat", stdin="\n".join(lines))
    assert result.stderr.splitlines() == [
        "thinking: not set",
        "thinking: low",
        "thinking: not set",
        "thinking budget: 8",
        "thinking budget: not set",
        "system: Be brief.",
        "system: not set",
    ]


def test_help_names_every_command(macmoe, play):
    play("add")
    result = macmoe("chat", stdin="/help\n/quit\n/undo\n")
    assert result.exit_code == 0
    assert all(f"\n{name}" in f"\n{result.stderr}" for name in COMMANDS)
    assert max(map(len, result.stderr.splitlines())) < 80


def test_a_saved_conversation_goes_on(macmoe, play, tmp_path):
    play("evil")
    path = tmp_path / "chat.json"
    assert macmoe("chat", stdin=f"go\n/save {path}\n").exit_code == 0
    saved = json.loads(path.read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    result = macmoe("chat", stdin=f"/load {path}\n/retry\n/undo\n")
    assert result.stdout == f"{EVIL}\n"
    assert result.stderr == f"2 messages read from {path}\ntaken back: go\n"


def test_tools_never_run_in_a_pipe_without_yes(macmoe, play):
    play("add")
    result = macmoe("chat", *TOOL, stdin="go\n")
    assert (result.exit_code, result.stdout) == (0, "Then I do not know.\n")
    assert result.stderr == 'add({"a": 1, "b": 2})\nnot run\n'


def test_tools_run_with_yes_and_what_they_print_is_no_answer(macmoe, play):
    play("add")
    result = macmoe("chat", *TOOL, "--yes", stdin="go\n")
    assert (result.exit_code, result.stdout) == (0, "It is 3.\n")
    assert result.stderr == 'add({"a": 1, "b": 2})\nadding\n= 3\n'


def test_arguments_that_do_not_fit_go_back_to_the_model(macmoe, play):
    play("wrong arguments")
    result = macmoe("chat", *TOOL, "--yes", stdin="go\n")
    assert (result.exit_code, result.stdout) == (0, "My mistake.\n")


def test_unusable_tools_settings_and_caches_are_one_line_before_the_first_question(macmoe, tmp_path):
    other = tmp_path / "other.cache"
    other.write_bytes(b"something else")
    for arguments, words in {
        ("--tool", str(tmp_path / "no.py")): "no.py: not a file",
        ("--cache", str(other / "chat.cache")): "is a file, so nothing can lie in it",
        ("--cache", str(other)): "other.cache",
    }.items():
        result = macmoe("chat", *arguments, stdin="Hi\n")
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert other.read_bytes() == b"something else"


def test_a_packed_cache_on_disk_serves_the_next_run_in_the_same_bits_only(macmoe, tmp_path):
    packed = ("--cache", str(tmp_path / "chat.cache"), "--temperature", "0", "--cache-bits", "8")
    question = "What is 17 + 25?"
    first = macmoe("chat", *packed, stdin=f"{question}\n")
    again = macmoe("generate", question, *packed, "--json")
    assert first.stdout.strip() == json.loads(again.stdout)["answer"] == "The answer is 42."
    assert json.loads(again.stdout)["stats"]["reused_tokens"] > 0
    full = macmoe("generate", question, *packed[:4])
    assert (full.exit_code, full.stderr.count("\n")) == (1, 1)
    assert "is kept in 8 bits, not in full precision; ask for the same (`--cache-bits`)" in full.stderr


def test_a_cache_on_disk_serves_the_next_run_and_no_other_model(macmoe, tmp_path):
    path = str(tmp_path / "chat.cache")
    question = "What is 17 + 25?"
    first = macmoe("chat", "--cache", path, "--temperature", "0", stdin=f"{question}\n")
    again = macmoe("generate", question, "--cache", path, "--temperature", "0", "--json")
    answer = json.loads(again.stdout)
    assert f"{answer['answer']}\n" == first.stdout
    assert answer["stats"]["reused_tokens"] == answer["stats"]["prompt_tokens"] - 1
    other = macmoe("chat", "--cache", path, "--model", "tiny:gpt-oss", stdin="Hi\n")
    assert (other.exit_code, other.stdout) == (1, "")
    assert "made by another model or precision" in other.stderr


@given(st.text())
def test_nothing_printable_returns_can_control_a_terminal(text):
    shown = printable(text)
    assert len(shown) == len(text)
    assert not any(ord(character) < 32 and character not in "\t\n" for character in shown)
    assert not any(
        0x7F <= ord(character) < 0xA0 or character in "\u202a\u202e\u2066\u2069" for character in shown
    )
    assert printable(text[: len(text) // 2]) + printable(text[len(text) // 2 :]) == shown


def test_a_conversation_on_a_terminal(terminal, tmp_path):
    with terminal("add", *TOOL) as chat:
        chat.type("go\r")
        chat.expect('add({"a": 1, "b": 2})')
        chat.expect("Run add? [y/N]")
        chat.type("n\r")
        chat.expect("Then I do not know.")
        chat.type("/retry\r")
        chat.expect("Run add? [y/N]")
        chat.type("y\r")
        chat.expect("= 3")
        chat.expect("It is 3.")
        chat.type("/retrry\r")
        chat.expect("error: /retrry is no command; did you mean '/retry'?")
        chat.type("\x03")
        chat.expect("Ctrl-C again leaves")
        chat.type("\x1b[200~/system one\ntwo\x1b[201~\r")
        chat.expect("system: one\r\ntwo")
        assert chat.leave() == 0
    history = tmp_path / "macmoe" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+go\n" in history.read_text()


def test_a_model_cannot_control_the_terminal(terminal):
    with terminal("evil") as chat:
        chat.type("go\r")
        chat.expect("tokens/s")
        assert chat.leave() == 0
    for harm in ("\x1b]0", "\x07", "\x9b", "\x7f", "\u202e", "\rover", "\x1b]8"):
        assert harm not in chat.output
    assert "\N{REPLACEMENT CHARACTER}]0;owned" in chat.output


def test_ctrl_c_stops_the_answer_and_keeps_what_was_written(terminal, tmp_path):
    path = tmp_path / "chat.json"
    with terminal("slow") as chat:
        chat.type("go\r")
        chat.expect("four")
        chat.resize(30)
        chat.expect("ten")
        chat.type("\x03")
        chat.expect("stopped")
        chat.type(f"/save {path}\r")
        chat.expect("2 messages written")
        assert chat.leave() == 0
    question, answer = json.loads(path.read_text())["messages"]
    assert question["content"] == "go"
    assert answer["content"].startswith("one two three four five six seven eight nine ten")
    assert len(answer["content"]) < 500


@pytest.mark.parametrize(
    ("scenario", "arguments", "sign", "kept"),
    [("stuck", (), "reading", 0), ("sleep", (*TOOL, "--yes"), "sleep({})", 2)],
    ids=["in the prompt", "in a tool"],
)
def test_ctrl_c_before_an_answer_keeps_the_conversation(terminal, tmp_path, scenario, arguments, sign, kept):
    with terminal(scenario, *arguments) as chat:
        chat.type("go\r")
        chat.expect(sign)
        chat.type("\x03")
        chat.expect("stopped")
        chat.type(f"/save {tmp_path / 'chat.json'}\r")
        chat.expect(f"{kept} messages written")
        assert chat.leave() == 0
    assert "Traceback" not in chat.output


def test_ctrl_c_at_the_question_whether_a_tool_may_run_stops_the_turn(terminal):
    with terminal("add", *TOOL) as chat:
        chat.type("go\r")
        chat.expect("Run add? [y/N]")
        chat.type("\x03")
        chat.expect("stopped")
        assert chat.leave() == 0
    assert "adding" not in chat.output
    assert "Traceback" not in chat.output


def piped(scenario, **options):
    command = [sys.executable, SCRIPTED, scenario, "chat"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def heed_interrupts():
    """Undo what a shell does to its background jobs, of which these tests may be one: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_in_a_pipe_ends_with_130():
    with piped("stuck", stdout=subprocess.PIPE, preexec_fn=heed_interrupts) as chat:
        chat.stdin.write(b"go\n")
        chat.stdin.flush()
        assert chat.stderr.readline() == b"reading\n"
        chat.send_signal(signal.SIGINT)
        out, err = chat.communicate(timeout=60)
    assert (chat.returncode, out, err) == (130, b"", b"")


def test_a_closed_pipe_is_quiet():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe, piped("evil", stdout=pipe) as chat:
        _, err = chat.communicate(b"go\ngo\n", timeout=60)
    assert chat.returncode not in (0, -signal.SIGSEGV)
    assert err == b""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Return two adapters that change what tiny:qwen3 says."""
    folder = tmp_path_factory.mktemp("adapters")
    session = macmoe_package.load("tiny:qwen3")
    for seed, name in enumerate(("loud", "odd")):
        specs = select(session.model, ("attention",), LoraSpec(rank=2, alpha=64.0))
        made = attach(session.model, specs, seed)
        keys = iter(mx.random.split(mx.random.key(seed), len(made)))
        for adapter in made.values():
            adapter.lora_b = mx.random.normal(adapter.lora_b.shape, key=next(keys))
        save_adapter(taken(made), folder / name, "qwen3")
        detach(session.model)
    return folder


def test_adapters_are_exchanged_at_run_time(macmoe, adapters):
    question, how = "What is 17 + 25?", ("--temperature", "0", "--max-tokens", "24")
    chosen = {
        "loud": ("--adapter", str(adapters / "loud")),
        "off": (),
        "odd": ("--adapter", str(adapters / "odd")),
    }
    alone = {name: macmoe("generate", *how, *option, question).stdout for name, option in chosen.items()}
    assert len(set(alone.values())) == 3
    lines = [question, "/undo", "/adapter off", question, "/undo", "/adapter odd", question, "/adapter"]
    both = (*chosen["loud"], *chosen["odd"])
    chat = macmoe("chat", *how, *both, stdin="".join(line + "\n" for line in lines))
    assert chat.exit_code == 0, chat.stderr
    assert chat.stdout == alone["loud"] + alone["off"] + alone["odd"]
    assert "adapter: off (there are loud, odd)" in chat.stderr
    assert "adapter: odd (there are loud)" in chat.stderr


def test_adapters_that_are_missing_or_not_told_apart_are_one_line(macmoe, adapters, tmp_path):
    for arguments, words in (
        (("--adapter", str(tmp_path)), "no adapter here"),
        (("--adapter", str(adapters / "odd"), "--adapter", str(adapters / "odd")), "cannot be told apart"),
    ):
        run = macmoe("chat", *arguments, stdin="hello\n")
        assert (run.exit_code, run.stdout, run.stderr.count("\n")) == (1, "", 1)
        assert words in run.stderr
    run = macmoe("chat", "--adapter", str(adapters / "odd"), stdin="/adapter even\n")
    assert run.exit_code == 1
    assert "there is no adapter 'even'; known are odd, off" in run.stderr
