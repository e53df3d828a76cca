"""The commands of a chat, in a pipe with scripted models."""

from __future__ import annotations

import base64
import gc
import json
import weakref
from dataclasses import fields, replace

import pytest

from macmoe.chat.messages import Message
from macmoe.cli import slash
from macmoe.cli.chat import in_pipe
from macmoe.conversation import Conversation, Settings
from macmoe.errors import ChatFormatError, CheckpointError
from tests.cli.scripted_chat import QUESTION
from tests.scripted import ScriptedModel

AGAIN = Message("user", "again")


class Played:
    """The models of a run of `macmoe chat`, and the settings at its end."""

    def __init__(self):
        self.models = {}

    def load(self, name, **_):
        if name not in self.models:
            raise CheckpointError(f"{name}: there is no such model")
        return self.models[name].session()


@pytest.fixture
def played(monkeypatch):
    """Let `macmoe.load` give models that answer "go" and "again", one of each family."""
    runs = Played()
    for family in ("deepseek_v3", "qwen3", "gpt_oss"):
        model = ScriptedModel(family)
        thought = "Hm." if family == "qwen3" else None  # without a setting, it is the one that thinks

        def answer(text, reasoning=thought):
            return Message("assistant", text, reasoning=reasoning)

        model.learn([QUESTION], answer(f"I am {family}."))
        model.learn([AGAIN], answer("Afresh."))
        for other in ("deepseek_v3", "qwen3", "gpt_oss"):
            history = [QUESTION, Message("assistant", f"I am {other}.")]
            model.learn([*history, AGAIN], answer(f"Still {family}."))
        runs.models[family] = model
    monkeypatch.setattr("macmoe.load", runs.load)
    return runs


@pytest.fixture
def chat(macmoe, played):  # noqa: ARG001 - gives the models
    """Return a function that runs a chat with DeepSeek's model on lines."""

    def run(*lines, arguments=()):
        stdin = "".join(f"{line}\n" for line in lines)
        return macmoe("chat", "--model", "deepseek_v3", *arguments, stdin=stdin)

    return run


def test_every_setting_can_be_set_listed_and_taken_back(chat):
    values = {
        "system": "Be brief.",
        "thinking": "low",
        "temperature": "0.5",
        "top_p": "0.9",
        "min_p": "0.1",
    }
    names = [field.name for field in fields(Settings)]
    lines = [f"/set {name} {values.get(name, '7')}" for name in names]
    result = chat(*lines, "/set", *(f"/set {name} -" for name in names), "/set")
    assert result.exit_code == 0, result.stderr
    shown = result.stderr.splitlines()
    count = len(names)
    for name, said, listed in zip(names, shown[:count], shown[count : 2 * count], strict=True):
        value = values.get(name, "7")
        assert said.removesuffix(".0") == f"{name.replace('_', ' ')}: {value}"
        assert (listed.split()[0], listed.split(maxsplit=1)[1].removesuffix(".0")) == (name, value)
    defaults = [getattr(Settings(), name) for name in names]
    for line, default in zip(shown[3 * count :], defaults, strict=True):
        assert line.endswith("not set" if default in (None, ()) else str(default))


def test_settings_are_named_as_options_are_and_reach_the_next_answer(chat, monkeypatch):
    used = []
    send = Conversation.send
    monkeypatch.setattr(
        Conversation,
        "send",
        lambda self, text, **options: used.append(self.settings) or send(self, text, **options),
    )
    assert chat("/set --top-p 0.5", "/set top-k 3", "go").exit_code == 0
    assert used == [replace(Settings(), top_p=0.5, top_k=3)]


def test_clear_begins_a_new_conversation_and_keeps_the_settings(chat):
    result = chat("/set temperature 0", "go", "/clear", "again", "/new", "again", "/set temperature")
    assert result.stdout == "I am deepseek_v3.\nAfresh.\nAfresh.\n"
    assert result.stderr.endswith("temperature: 0.0\n")


@pytest.mark.parametrize("word", ["/quit", "/exit", "/bye"])
def test_the_chat_can_be_left(chat, word):
    assert (chat(word, "/undo").exit_code, chat(word, "/undo").stderr) == (0, "")


def test_another_model_goes_on_with_the_conversation(chat):
    result = chat("go", "/model qwen3", "again", "/undo", "/model gpt_oss", "again", "/model")
    assert result.stdout == "I am deepseek_v3.\nStill qwen3.\nStill gpt_oss.\n"
    assert result.stderr.endswith("model: gpt_oss\n")


def test_a_model_that_cannot_be_loaded_or_set_so_leaves_the_old_one(played, monkeypatch):
    lines = iter(["go", "/model nowhere", "/model gpt_oss", "again", "/model"])

    def read_line(_):
        for line in lines:
            return line
        raise EOFError

    session = played.load("deepseek_v3")
    dialogue = in_pipe(session, session.chat(), yes=False, hide_thinking=False)
    dialogue.read_line, dialogue.interactive, dialogue.model = read_line, True, "deepseek_v3"

    def refuse(_):
        raise ChatFormatError("no such thinking")

    chat_format = type(played.models["gpt_oss"].session().format)
    monkeypatch.setattr(chat_format, "opening", lambda _, thinking: refuse(thinking))
    dialogue.run()
    assert dialogue.session is session
    assert dialogue.model == "deepseek_v3"
    assert [message.content for message in dialogue.conversation.messages] == [
        "go",
        "I am deepseek_v3.",
        "again",
        "Still deepseek_v3.",
    ]


def test_the_memory_of_the_model_before_becomes_free(chat, played, monkeypatch):
    left = []

    def watch(*_):
        gc.collect()
        left.append(model() is None)

    model = weakref.ref(played.models["deepseek_v3"])
    load = played.load

    def load_once(name, **_):
        session = load(name)
        del played.models[name]
        return session

    monkeypatch.setattr("macmoe.load", load_once)
    monkeypatch.setitem(slash.COMMANDS, "/help", slash.Command(watch, "", ""))
    assert chat("go", "/model qwen3", "/help", "again").stdout.endswith("Still qwen3.\n")
    assert left == [True]


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3", "gpt_oss"])
def test_tokens_says_how_much_of_the_context_is_used(chat, played, family):
    result = chat(f"/model {family}", "/tokens", "go", "/tokens")
    empty, used = (line for line in result.stderr.splitlines() if "room" in line)
    assert empty == "0 of 4,096 tokens (0%); there is room for 4,096"
    session = played.models[family].session()
    thought = "Hm." if family == "qwen3" else None
    said = [QUESTION, Message("assistant", f"I am {family}.", reasoning=thought)]
    count = len(session.tokenizer.encode_segments(session.format.render(said)))
    assert used.startswith(f"{count} of 4,096 tokens")


def test_copy_hands_the_answer_to_the_terminal_or_to_the_program_of_the_system(chat, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    content = base64.b64encode(b"I am deepseek_v3.").decode()
    assert f"\x1b]52;c;{content}\x07copied: 17 characters" in chat("go", "/copy").stderr
    program = tmp_path / "pbcopy"
    program.write_text(f"#!/bin/sh\n/bin/cat > {tmp_path}/clipboard\n")
    program.chmod(0o755)
    assert "copied: 17" in chat("go", "/copy").stderr
    assert (tmp_path / "clipboard").read_text() == "I am deepseek_v3."


def test_the_first_message_may_stand_on_the_command_line(chat):
    result = chat("again", arguments=("go",))
    assert result.stdout == "I am deepseek_v3.\nStill deepseek_v3.\n"


@pytest.mark.parametrize("wrapped", [False, True], ids=["list", "request"])
def test_a_conversation_of_a_server_goes_on(chat, tmp_path, wrapped):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "I am qwen3."},
    ]
    path = tmp_path / "messages.json"
    path.write_text(json.dumps({"model": "x", "messages": messages} if wrapped else messages))
    result = chat("/system", "/system -", "again", arguments=("--load", str(path)))
    assert result.stdout == "Still deepseek_v3.\n"
    assert result.stderr.startswith("system: Be brief.\n")
    refused = chat(f"/save {path}")
    assert (refused.exit_code, json.loads(path.read_text()) == messages) == (1, not wrapped)
    assert "not a saved conversation" in refused.stderr


def test_a_full_context_names_what_makes_room(chat, played):
    config = played.models["deepseek_v3"].config
    played.models["deepseek_v3"].config = replace(config, max_position_embeddings=24)
    result = chat("go", "again and again and again and again")
    assert result.exit_code == 1
    assert "; /undo takes back the last question and its answer, /clear begins a new conver" in result.stderr
    first = chat("go and go and go and go and go and go and go and go")
    assert first.stderr.endswith("shorten the prompt\n")
