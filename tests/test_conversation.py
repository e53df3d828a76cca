"""Conversations: what the history holds, what is processed again, tools, files.

The built-in models answer for real; where the words matter, a scripted model answers.
"""

from __future__ import annotations

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

import macmoe
from macmoe.chat.events import AnswerText, CommentaryText, ThinkingText, ToolCallEvent
from macmoe.chat.messages import Message, ToolCall
from macmoe.conversation import NO_RESULT, Conversation, Settings
from macmoe.errors import ChatFormatError, UsageError
from macmoe.generate import prefill
from macmoe.nn.cache import FullCache, SlidingCache
from macmoe.prompt_cache import PromptCache
from tests.scripted import ScriptedModel

FAMILIES = ("qwen3", "gpt_oss", "deepseek_v3")
TINY = {family: f"tiny:{family.replace('_', '-')}" for family in FAMILIES}
QUESTIONS = ("What is 17 + 5?", "What is 3 + 4?", "12 * 4", "Is 31 > 13?", "What is 9 - 5?")
GREEDY = Settings(temperature=0.0)
# How many tokens at the end of a prompt history writes in another way: Qwen3 leaves out the empty block,
# DeepSeek closes a block that the prompt opened.
REWRITTEN = {("qwen3", "off"): 4, ("deepseek_v3", "on"): 1}


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request):
    return macmoe.load(TINY[request.param], dtype="float32")


def ask(chat, *questions):
    for question in questions:
        list(chat.send(question))
    return chat


@pytest.mark.parametrize("turns", [3, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize("thinking", ["on", "off"])
def test_a_turn_reuses_everything_up_to_the_last_prompt(tiny, thinking, turns):
    chat = ask(tiny.chat(replace(GREEDY, thinking=thinking)), *QUESTIONS[:turns])
    rewritten = REWRITTEN.get((tiny.family.name, thinking), 0)
    for before, after in zip(chat.stats, chat.stats[1:], strict=False):
        assert after.reused_tokens >= before.prompt_tokens - rewritten
        assert (
            after.prompt_tokens - after.reused_tokens < 40
        )  # an answer without its thinking, and a question
    assert len(chat.stats) == turns


@pytest.mark.parametrize("thinking", ["on", "off"])
def test_answers_and_probabilities_after_reuse_are_those_of_a_fresh_start(tiny, thinking):
    chat = ask(tiny.chat(replace(GREEDY, thinking=thinking)), *QUESTIONS[:2])
    messages = [*chat.messages, Message("user", QUESTIONS[3])]
    prompt = tiny.tokenizer.encode_segments(tiny.format.render(messages, thinking=thinking))
    pending = chat.cache.resume(prompt)
    assert len(pending) < len(prompt) / 2
    reused = prefill(tiny.model, mx.array([pending]), chat.cache.cache)
    fresh = prefill(tiny.model, mx.array([prompt]), tiny.model.make_cache())
    distance = mx.abs(mx.softmax(reused) - mx.softmax(fresh)).max().item()
    np.testing.assert_allclose(_log_softmax(reused), _log_softmax(fresh), atol=5e-5)
    assert distance < 5e-5


def _log_softmax(logits):
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def test_a_saved_cache_goes_on_with_identical_tokens(tiny, tmp_path):
    chat = ask(tiny.chat(replace(GREEDY, thinking="on")), *QUESTIONS[:2])
    chat.save(tmp_path / "chat.json")
    chat.cache.save(tmp_path / "chat.cache")
    other = tiny.chat(
        replace(GREEDY, thinking="on"), cache=PromptCache.load(tmp_path / "chat.cache", tiny.model)
    )
    other.load(tmp_path / "chat.json")
    assert ask(other, QUESTIONS[2]).messages == ask(chat, QUESTIONS[2]).messages
    assert other.cache.tokens == chat.cache.tokens
    assert other.stats[0].reused_tokens == chat.stats[2].reused_tokens > 0


@pytest.mark.parametrize("updates", [22, *(pytest.param(each, marks=pytest.mark.long) for each in (2, 23))])
def test_ctrl_c_inside_a_forward_pass_leaves_a_usable_cache(tiny, monkeypatch, updates):
    """Interrupt at some update of a layer, wherever that is: in the prompt, or between any two layers."""
    chat = ask(tiny.chat(GREEDY), QUESTIONS[0])
    before = list(chat.messages)
    calls = iter(range(updates))
    with monkeypatch.context() as patched:
        for kind in (FullCache, SlidingCache):
            patched.setattr(kind, "update", interrupted_after(calls, kind.update))
        with pytest.raises(KeyboardInterrupt):
            list(chat.send(QUESTIONS[1]))
    chat.messages = [*before, Message("user", QUESTIONS[2])]
    list(chat.retry())
    assert chat.messages[-1] == next_message(tiny, chat.messages[:-1])
    assert chat.stats[-1].reused_tokens >= chat.stats[0].prompt_tokens - 1


def interrupted_after(calls, update):
    def interrupted(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return update(*arguments)

    return interrupted


def next_message(session, messages):
    """Answer without any cache."""
    chat = Conversation(session.generate, GREEDY, messages=messages)
    list(chat.retry())
    return chat.messages[-1]


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tool_call_goes_to_the_function_and_back(family):
    model = ScriptedModel(family)
    tools = [macmoe.Tool.from_function(multiply).declaration]
    question = Message("user", "What is 6 * 7?")
    called = ToolCall("multiply", {"a": 6, "b": 7}, id="call_0", raw='{"a": 6, "b": 7}')
    # DeepSeek-V3.1 calls tools without thinking.
    thought = None if family == "deepseek_v3" else "I have a tool."
    calling = Message("assistant", "", reasoning=thought, tool_calls=(called,))
    result = Message("tool", "42", tool_call_id="call_0", name="multiply")
    answer = Message("assistant", "The answer is 42.", reasoning=thought and "It said 42.")
    model.learn([question], calling, tools=tools)
    model.learn([question, calling, result], answer, tools=tools)
    chat = model.session().chat(tools=[multiply])
    first = list(chat.send(question.content))
    assert [event for event in first if isinstance(event, ToolCallEvent)] == [
        ToolCallEvent("multiply", {"a": 6, "b": 7}, '{"a": 6, "b": 7}')
    ]
    assert chat.pending == (called,)
    list(chat.reply([chat.run(call) for call in chat.pending]))
    assert chat.messages == [question, calling, result, answer]
    assert chat.pending == ()
    assert chat.stats[1].reused_tokens >= chat.stats[0].prompt_tokens


def scripted_chat(answers, **options):
    """Return a conversation whose answers are lists of events, and the list of what it was asked."""
    asked = []
    remaining = iter(answers)

    def generate(messages, **arguments):
        asked.append((list(messages), arguments))
        for event in next(remaining):
            if isinstance(event, BaseException):
                raise event
            yield event

    return Conversation(generate, Settings(), **options), asked


def test_settings_and_history_reach_the_model():
    chat, asked = scripted_chat([[ThinkingText("hm"), AnswerText("a")], [AnswerText("b")]])
    chat.settings = Settings(system="Be brief.", thinking="low", temperature=0.5)
    ask(chat, "one", "two")
    messages, arguments = asked[1]
    assert messages == [
        Message("user", "one"),
        Message("assistant", "a", reasoning="hm"),
        Message("user", "two"),
    ]
    assert (arguments["system"], arguments["thinking"], arguments["temperature"]) == ("Be brief.", "low", 0.5)


def test_commentary_stays_in_the_history_with_calls_and_without():
    said, call = CommentaryText("I will look."), ToolCallEvent("f", {}, "{}")
    chat, _ = scripted_chat([[said, AnswerText("It is "), AnswerText("42.")], [said], [said, call]])
    ask(chat, "one", "two", "three")
    written = [message.content for message in chat.messages if message.role == "assistant"]
    assert written == ["I will look.\n\nIt is 42.", "I will look.", "I will look."]


def test_a_stopped_answer_keeps_what_was_written():
    chat, _ = scripted_chat([[ThinkingText("so "), ThinkingText("far"), AnswerText("never")]])
    answer = chat.send("one")
    next(answer), next(answer)
    answer.close()
    assert chat.messages == [Message("user", "one"), Message("assistant", "", reasoning="so far")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UsageError("the prompt is too long")])
def test_an_answer_that_never_began_leaves_the_conversation_as_it_was(error):
    chat, _ = scripted_chat([[AnswerText("a")], [error], [error]])
    before = list(ask(chat, "one").messages)
    for events in (chat.send("two"), chat.retry()):
        with pytest.raises(type(error)):
            list(events)
        assert chat.messages == before


def test_undo_takes_back_the_question_with_all_that_followed():
    call = ToolCallEvent("f", {}, "{}")
    chat, _ = scripted_chat([[AnswerText("a")], [call], [AnswerText("b")]])
    ask(chat, "one", "two")
    list(chat.reply(["result"]))
    assert (chat.undo(), chat.messages[-1].content) == ("two", "a")
    assert (chat.undo(), chat.messages) == ("one", [])
    with pytest.raises(UsageError, match="no question"):
        chat.undo()


def test_retry_answers_the_last_question_in_place_of_its_answer():
    chat, asked = scripted_chat([[AnswerText("a")], [AnswerText("b")]])
    ask(chat, "one")
    list(chat.retry())
    assert asked[0] == asked[1]
    assert chat.messages == [Message("user", "one"), Message("assistant", "b")]


def test_calls_that_nobody_answered_are_answered_by_the_next_question():
    call = ToolCallEvent("f", {}, "{}")
    chat, asked = scripted_chat([[call, call], [AnswerText("b")]])
    ask(chat, "one", "two")
    results = [message for message in asked[1][0] if message.role == "tool"]
    assert [(each.content, each.tool_call_id) for each in results] == [
        (NO_RESULT, "call_0"),
        (NO_RESULT, "call_1"),
    ]


def test_results_must_be_as_many_as_calls():
    chat, _ = scripted_chat([[ToolCallEvent("f", {}, "{}")]])
    ask(chat, "one")
    for results in ([], ["a", "b"]):
        with pytest.raises(UsageError, match="for 1 pending tool calls"):
            list(chat.reply(results))


def test_empty_messages_are_refused():
    chat, asked = scripted_chat([])
    with pytest.raises(UsageError, match="the message is empty"):
        list(chat.send(" \n"))
    assert (asked, chat.messages) == ([], [])


def test_a_conversation_comes_back_from_its_file(tmp_path):
    path = tmp_path / "chat.json"
    call = ToolCallEvent("f", None, "no JSON")
    chat, _ = scripted_chat([[ThinkingText("é"), AnswerText("ä\u2028"), call], [AnswerText("b")]])
    chat.settings = Settings(system="Be brief.")
    ask(chat, "one")
    list(chat.reply(["result"]))
    chat.save(path)
    chat.save(path)  # its own file may be replaced
    other, _ = scripted_chat([])
    other.load(path)
    assert (other.messages, other.settings) == (chat.messages, chat.settings)
    assert [entry.name for entry in tmp_path.iterdir()] == ["chat.json"]


OTHER_PROGRAM_S = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "one"}]},
    {"role": "assistant", "content": "two", "refusal": None, "annotations": []},
]


@pytest.mark.parametrize("data", [OTHER_PROGRAM_S, {"messages": OTHER_PROGRAM_S, "model": "m"}])
def test_a_history_of_another_program_goes_on_and_is_never_replaced(tmp_path, caplog, data):
    path = tmp_path / "history.json"
    path.write_text(json.dumps(data))
    chat, _ = scripted_chat([])
    chat.load(path)
    assert chat.settings.system == "Be brief."
    assert chat.messages == [Message("user", "one"), Message("assistant", "two")]
    assert [record.getMessage() for record in caplog.records] == (
        [f"{path}: only its messages are read, not model"] if isinstance(data, dict) else []
    )
    with pytest.raises(ChatFormatError, match="not a saved conversation"):
        chat.save(path)
    assert json.loads(path.read_text()) == data


SAVED = {"macmoe_conversation": 1, "system": None, "messages": [{"role": "user", "content": "one"}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a saved conversation"),
        ("[]", "not a saved conversation"),
        ("[1]", "message 1: "),
        ("[" * 100_000, "not a saved conversation"),
        (json.dumps({"messages": []}), "not a saved conversation"),
        (json.dumps(SAVED | {"macmoe_conversation": 2}), "version 2"),
        (json.dumps(SAVED | {"system": 1}), "`system` must be text or null"),
        (json.dumps(SAVED | {"messages": {}}), "`messages` a list"),
        (json.dumps(SAVED | {"messages": [{"role": "user", "content": "a"}, 1]}), "message 2: "),
        (json.dumps(SAVED | {"messages": [{"role": "boss", "content": "a"}]}), "'boss' is no role"),
        (json.dumps(SAVED | {"messages": [{"role": "user", "content": None}]}), "must be text"),
    ],
)
def test_a_file_that_is_no_conversation_is_one_line_and_is_never_replaced(tmp_path, text, words):
    path = tmp_path / "chat.json"
    path.write_text(text)
    chat, _ = scripted_chat([[AnswerText("a")]])
    ask(chat, "one")
    before = list(chat.messages)
    with pytest.raises(ChatFormatError) as error:
        chat.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert chat.messages == before
    if "message" not in words:
        with pytest.raises(ChatFormatError):
            chat.save(path)
        assert path.read_text() == text
