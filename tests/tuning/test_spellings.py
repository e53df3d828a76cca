"""Whatever a row says, all spellings of it that data sets use give the same record."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import Message
from macmoe.tuning.records import Record, read_record
from macmoe.tuning.spellings import RECORD_FIELDS
from tests.tuning.builders import SOMEWHERE

WORDS = st.text("ab ,.?\n", min_size=1, max_size=12).map(str.strip).filter(bool)
SAYINGS = st.fixed_dictionaries(
    {
        "system": st.none() | WORDS,
        "history": st.lists(st.tuples(WORDS, WORDS), max_size=2),
        "question": WORDS,
        "reasoning": st.none() | WORDS,
        "answer": WORDS,
        "tools": st.sampled_from([(), ({"type": "function", "function": {"name": "f", "parameters": {}}},)]),
    }
)


def messages_of(said: dict[str, Any]) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": said["system"]}] if said["system"] else []
    turns = [
        {"role": role, "content": text}
        for pair in (*said["history"], (said["question"], said["answer"]))
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    if said["reasoning"]:
        turns[-1]["reasoning_content"] = said["reasoning"]
    return [*system, *turns]


def openai(said: dict[str, Any]) -> dict[str, Any]:
    keys = {"refusal": None, "annotations": [], "name": ""}
    messages = [{**message, **keys} for message in messages_of(said)]
    return {"messages": messages, "tools": list(said["tools"]), "functions": None}


def parquet(said: dict[str, Any]) -> dict[str, Any]:
    keys = dict.fromkeys(("reasoning_content", "tool_calls", "tool_call_id", "name", "weight"))
    return {"messages": [{**keys, **message} for message in messages_of(said)], "tools": list(said["tools"])}


def sharegpt(said: dict[str, Any]) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[message["role"]], "value": message["content"]} for message in messages_of(said)]
    if said["reasoning"]:
        turns[-1]["value"] = f"<think>\n{said['reasoning']}\n</think>\n\n{said['answer']}"
    bare = [tool["function"] for tool in said["tools"]]
    return {"conversations": turns, "system": "", "tools": json.dumps(bare) if bare else ""}


def prompt_as_messages(said: dict[str, Any]) -> dict[str, Any]:
    *prompt, completion = messages_of(said)
    return {"prompt": prompt, "completion": [completion], "tools": list(said["tools"])}


def chosen_side(said: dict[str, Any]) -> dict[str, Any]:
    *prompt, _ = messages_of(said)
    other = [*prompt, {"role": "assistant", "content": "Other."}]
    return {"prompt": prompt, "chosen": messages_of(said), "rejected": other, "tools": list(said["tools"])}


def columns(prompt: str, completion: str, reasoning: str = "reasoning") -> Callable[..., dict[str, Any]]:
    def write(said: dict[str, Any]) -> dict[str, Any]:
        return {
            "system": said["system"] or " ",
            "history": said["history"],
            prompt: said["question"],
            "input": "",
            reasoning: said["reasoning"],
            completion: said["answer"],
            "tools": json.dumps(said["tools"]),
            "text": None,
        }

    return write


ROWS: dict[str, Callable[..., dict[str, Any]]] = {
    "openai": openai,
    "parquet": parquet,
    "sharegpt": sharegpt,
    "trl": prompt_as_messages,
    "alpaca": columns("instruction", "output"),
    "question and answer": columns("question", "answer", "cot"),
    "problem and solution": columns("problem", "solution", "rationale"),
    "query and response": columns("query", "response", "thought"),
    "instruction and response": columns("instruction", "response", "reasoning_content"),
    "capital letters": columns("Question", "Response", "Complex_CoT"),
}
NAMED: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, str]]] = {
    "columns of any name": (
        columns("q", "a", "why"),
        {"q": "prompt", "a": "completion", "why": "reasoning"},
    ),
    "alpaca": (columns("instruction", "output"), {"instruction": "prompt", "output": "completion"}),
    "a chosen side": (chosen_side, {"chosen": "completion"}),
}


def expected(said: dict[str, Any]) -> Record:
    messages = [Message(m["role"], m["content"]) for m in messages_of(said)[:-1]]
    answer = Message("assistant", said["answer"], reasoning=said["reasoning"])
    return Record(
        place=SOMEWHERE,
        messages=(*messages, answer),
        weights=tuple(float(message.role == "assistant") for message in (*messages, answer)),
        tools=said["tools"],
    )


@settings(deadline=None, max_examples=25)
@given(said=SAYINGS)
def test_every_spelling_of_a_row_is_the_same_record(said):
    for name, write in ROWS.items():
        assert read_record(write(said), SOMEWHERE) == (expected(said), []), name


@settings(deadline=None, max_examples=25)
@given(said=SAYINGS)
def test_columns_that_are_named_give_the_same_record(said):
    for name, (write, named) in NAMED.items():
        assert read_record(write(said), SOMEWHERE, named)[0] == expected(said), name


PAIRS = [
    (prompt, completion)
    for prompt in RECORD_FIELDS["prompt"] + RECORD_FIELDS["instruction"]
    for completion in RECORD_FIELDS["completion"]
]


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_any_question_goes_with_any_answer(prompt, completion):
    found, ignored = read_record({prompt: "Q", completion: "A", "history": [], "system": ""}, SOMEWHERE)
    assert [message.content for message in found.messages] == ["Q", "A"]
    assert not ignored
