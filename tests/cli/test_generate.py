"""`macmoe generate`: what goes to which stream, exactly; a scripted session stands for the model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from macmoe.answer import Stats
from macmoe.chat.events import AnswerText, CommentaryText, ThinkingText, ToolCallEvent
from macmoe.errors import UsageError

STATS = Stats(
    prompt_tokens=12,
    reused_tokens=0,
    thinking_tokens=5,
    answer_tokens=4,
    generated_tokens=9,
    stop_reason="stop",
    thinking_cut=False,
    seed=7,
    prompt_seconds=0.25,
    seconds=0.5,
    peak_memory=3 * 2**20,
)
CUT = Stats(
    prompt_tokens=12,
    reused_tokens=0,
    thinking_tokens=0,
    answer_tokens=1,
    generated_tokens=1,
    stop_reason="length",
    thinking_cut=True,
    seed=7,
    prompt_seconds=0.25,
    seconds=0.0,
    peak_memory=3 * 2**30,
)
STATS_LINE = "12 tokens in, 9 out (5 of thinking), 16 tokens/s\n"
ANSWER = [
    ThinkingText("7 + 5 = 12, "),
    ThinkingText("carry 1."),
    AnswerText("It is "),
    AnswerText("42."),
    STATS,
]


class ScriptedSession:
    """Yields prepared events and remembers what it was asked."""

    def __init__(self, events):
        self.events = events
        self.calls = []

    def _answer(self, kind, text, options):
        del options["progress"]
        given = {name: value for name, value in options.items() if value not in (None, [])}
        self.calls.append((kind, text, given))
        for event in self.events:
            if isinstance(event, BaseException):
                raise event
            yield event

    def generate(self, text, **options):
        return self._answer("chat", text, options)

    def complete(self, text, **options):
        return self._answer("raw", text, options)

    def sampling(self, **options):
        return {name: value for name, value in options.items() if value is not None}


@pytest.fixture
def session(monkeypatch):
    """Return a function that lets `macmoe.load` give a session with these events."""

    def script(events):
        scripted = ScriptedSession(events)
        monkeypatch.setattr("macmoe.load", lambda *_, **__: scripted)
        return scripted

    return script


def test_answer_goes_to_stdout_and_thinking_to_stderr(macmoe, session):
    session(ANSWER)
    result = macmoe("generate", "What is 17 + 25?")
    assert result.exit_code == 0
    assert result.stdout == "It is 42.\n"
    assert result.stderr == "7 + 5 = 12, carry 1.\n" + STATS_LINE


def test_thinking_can_be_hidden(macmoe, session):
    session(ANSWER)
    result = macmoe("generate", "What is 17 + 25?", "--hide-thinking")
    assert (result.stdout, result.stderr) == ("It is 42.\n", STATS_LINE)


def test_commentary_and_tool_calls(macmoe, session):
    call = ToolCallEvent("add", {"a": 17, "b": 25}, '{"a": 17, "b": 25}')
    session([ThinkingText("A tool."), CommentaryText("Let me see."), call, STATS])
    result = macmoe("generate", "What is 17 + 25?")
    assert result.stdout == 'add({"a": 17, "b": 25})\n'
    assert result.stderr == "A tool.\nLet me see.\n" + STATS_LINE


def test_limits_are_reported(macmoe, session):
    session([AnswerText("4"), CUT])
    result = macmoe("generate", "What is 17 + 25?")
    assert result.stderr == (
        "12 tokens in, 1 out, 0 tokens/s\nthinking closed at its budget\ncut at the limit of tokens\n"
    )


def test_reused_tokens_are_reported(macmoe, session):
    session([AnswerText("4"), replace(STATS, reused_tokens=10)])
    assert macmoe("generate", "Hi").stderr == STATS_LINE.replace("in,", "in (10 known),")


def test_json_is_one_object_on_stdout(macmoe, session):
    call = ToolCallEvent("add", None, "17 25")
    session([*ANSWER[:-1], call, STATS])
    result = macmoe("generate", "What is 17 + 25?", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "thinking": "7 + 5 = 12, carry 1.",
        "answer": "It is 42.",
        "commentary": "",
        "tool_calls": [{"name": "add", "arguments": None, "raw": "17 25"}],
        "stats": {
            "prompt_tokens": 12,
            "reused_tokens": 0,
            "thinking_tokens": 5,
            "answer_tokens": 4,
            "generated_tokens": 9,
            "stop_reason": "stop",
            "thinking_cut": False,
            "seed": 7,
            "prompt_seconds": 0.25,
            "seconds": 0.5,
            "peak_memory": 3 * 2**20,
            "tokens_per_second": 16.0,
        },
    }


@pytest.mark.parametrize("arguments", [["-"], []])
def test_prompt_comes_from_standard_input(macmoe, session, arguments):
    asked = session(ANSWER)
    macmoe("generate", *arguments, stdin="Was ist 17 + 25, bitteschön?\n")
    assert asked.calls[0][:2] == ("chat", "Was ist 17 + 25, bitteschön?")


def test_every_option_reaches_the_session(macmoe, session):
    asked = session(ANSWER)
    options = {
        "system": "Be brief.",
        "thinking": "low",
        "thinking_budget": 64,
        "max_tokens": 256,
        "max_answer_tokens": 32,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.01,
        "repetition_penalty": 1.05,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "seed": 0,
        "stop": ("END",),
    }
    arguments = [
        part
        for name, value in options.items()
        for part in (f"--{name.replace('_', '-')}", "END" if name == "stop" else str(value))
    ]
    assert macmoe("generate", "Hi", *arguments).exit_code == 0
    assert asked.calls == [("chat", "Hi", options)]


DECLARED = [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}]


def test_tools_are_declared_and_calls_are_parsed(macmoe, session, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(DECLARED))
    asked = session([ToolCallEvent("add", {"a": 1}, '{"a": 1}'), STATS])
    result = macmoe("generate", "Hi", "--tools", str(path), "--json")
    assert asked.calls == [("chat", "Hi", {"tools": DECLARED})]
    assert json.loads(result.stdout)["tool_calls"] == [
        {"name": "add", "arguments": {"a": 1}, "raw": '{"a": 1}'}
    ]


def test_a_byte_order_mark_is_no_part_of_the_tools(macmoe, session, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(DECLARED), encoding="utf-8-sig")
    asked = session(ANSWER)
    assert macmoe("generate", "Hi", "--tools", str(path)).exit_code == 0
    assert asked.calls[0][2]["tools"] == DECLARED


def test_a_prompt_comes_from_a_file(macmoe, session, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("What is 17 + 25?\n", encoding="utf-8-sig")
    asked = session(ANSWER)
    assert macmoe("generate", "--file", str(path)).exit_code == 0
    assert macmoe("generate", "Be brief.", "--file", str(path), stdin="Thanks!\n").exit_code == 0
    assert [text for _, text, _ in asked.calls] == [
        "What is 17 + 25?",
        "Be brief.\n\nWhat is 17 + 25?\n\nThanks!",
    ]


def test_a_file_that_is_not_there_is_one_line(macmoe, tmp_path):
    result = macmoe("generate", "--file", str(tmp_path / "prompt.txt"))
    line = f"error: {tmp_path / 'prompt.txt'}: No such file or directory\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_input_beside_the_prompt_is_joined_to_it(macmoe, session):
    asked = session(ANSWER)
    for options in ([], ["--raw"]):
        assert macmoe("generate", "Summarize:", *options, stdin="Some text.\n").exit_code == 0
    assert [text for _, text, _ in asked.calls] == [
        "Summarize:\n\nSome text.",
        "Summarize:\n\nSome text.\n",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "tools.json: invalid JSON"),
        ('{"a": 1}', "tools.json: holds a JSON dict; tools are a list"),
        ('[{"name": "add"}]', "tools.json: tool 1: a tool is declared as"),
        (json.dumps([*DECLARED, 1]), "tools.json: tool 2: a tool is declared as"),
    ],
)
def test_unusable_tools_are_one_line(macmoe, tmp_path, text, words):
    path = tmp_path / "tools.json"
    path.write_text(text)
    result = macmoe("generate", "Hi", "--tools", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_raw_continues_the_text_as_it_is(macmoe, session):
    asked = session([AnswerText("42"), STATS])
    result = macmoe("generate", "--raw", "-", "--max-tokens", "3", "--seed", "1", stdin="17 + 25 =\n")
    assert result.stdout == "42\n"
    assert asked.calls == [("raw", "17 + 25 =\n", {"max_tokens": 3, "sampling": {"seed": 1}})]


def test_failure_before_the_first_token_prints_nothing_else(macmoe, session):
    session([UsageError("the prompt is empty: there is nothing to answer")])
    result = macmoe("generate", "")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: the prompt is empty: there is nothing to answer\n"


def test_interrupt_in_the_middle_exits_with_130(macmoe, session):
    session([AnswerText("It"), KeyboardInterrupt()])
    result = macmoe("generate", "Hi")
    assert (result.exit_code, result.stdout) == (130, "It")


def test_text_that_is_not_utf8_is_refused(macmoe, session):
    session(ANSWER)
    result = macmoe("generate", "-", stdin=b"caf\xe9")
    assert result.exit_code == 1
    assert (
        result.stderr == "error: the text is not UTF-8 (unexpected end of data at byte 3); convert it first\n"
    )


def test_a_terminal_gets_no_control_characters(macmoe, session, monkeypatch):
    session([AnswerText("\x1b[2Jgone\tnot"), STATS])
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    result = macmoe("generate", "Hi")
    assert result.stdout == "\N{REPLACEMENT CHARACTER}[2Jgone\tnot\n"


def test_a_pipe_gets_the_answer_unchanged(macmoe, session):
    session([AnswerText("\x1b[2Jgone"), STATS])
    assert macmoe("generate", "Hi").stdout == "\x1b[2Jgone\n"
