"""Rows of data sets in other forms than macmoe's own: Alpaca, histories, pairs, named and empty columns."""

from __future__ import annotations

import re

import pytest

from macmoe.chat import Message
from macmoe.errors import DatasetError, UsageError
from macmoe.tuning.config import read_run
from macmoe.tuning.data import read_dataset
from macmoe.tuning.forms import parse_columns
from macmoe.tuning.records import read_record
from tests.tuning.builders import SOMEWHERE, record, teach, write_lines

ASKED = (Message("user", "Add.\n\n1 and 2"), Message("assistant", "3"))
PLAIN = (Message("user", "Add."), Message("assistant", "3"))
LATER = (Message("user", "Q"), Message("assistant", "A"), *PLAIN)
ROWS = {
    "alpaca": ({"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Below is ..."}, ASKED),
    "alpaca without input": ({"instruction": "Add.", "input": "", "output": "3"}, PLAIN),
    "dolly": ({"instruction": "Add.", "context": "1 and 2", "response": "3"}, ASKED),
    "alpaca with history": (
        {"instruction": "Add.", "input": "", "output": "3", "system": "", "history": [["Q", "A"]]},
        LATER,
    ),
    "history as messages": (
        {"query": "Add.", "response": "3", "history": [m.to_dict() for m in LATER[:2]]},
        LATER,
    ),
    "input and output": ({"input": "Add.", "output": "3"}, PLAIN),
    "inputs and targets": ({"inputs": "Add.", "targets": "3"}, PLAIN),
    "query and response": ({"query": "Add.", "response": "3"}, PLAIN),
    "user and assistant": ({"user": "Add.", "assistant": "3"}, PLAIN),
    "capital letters": ({"Question": "Add.", "Complex_CoT": None, "Response": "3"}, PLAIN),
    "messages beside an empty prompt": ({"prompt": "", "messages": [m.to_dict() for m in PLAIN]}, PLAIN),
    "a prompt beside empty messages": ({"prompt": "Add.", "completion": "3", "messages": []}, PLAIN),
    "a completion that is one message": (
        {"prompt": "Add.", "completion": {"from": "gpt", "value": "3"}},
        PLAIN,
    ),
    "a liked answer": ({"prompt": "Add.", "completion": "3", "label": True}, PLAIN),
}


@pytest.mark.parametrize(("row", "messages"), ROWS.values(), ids=ROWS)
def test_forms_of_other_tools_are_conversations(row, messages):
    found, _ = read_record(row, SOMEWHERE)
    assert found.messages == messages
    assert found.weights == tuple(float(message.role == "assistant") for message in messages)


@pytest.mark.parametrize("empty", ["", "  ", None, [], {}], ids=repr)
@pytest.mark.parametrize("column", ["system", "tools", "thinking", "reasoning", "history", "id", "text"])
def test_a_column_that_holds_nothing_is_absent(column, empty):
    row = {"prompt": "Add.", "completion": "3"}
    assert read_record(row | {column: empty}, SOMEWHERE) == read_record(row, SOMEWHERE)


def test_bare_functions_are_declared_as_tools():
    bare = {"name": "f", "description": "D", "parameters": {"type": "object"}}
    row = {"messages": [message.to_dict() for message in PLAIN], "parallel_tool_calls": False}
    for tools in ([bare], '[{"name": "f", "description": "D", "parameters": {"type": "object"}}]'):
        found, ignored = read_record({**row, "tools": tools}, SOMEWHERE)
        assert found.tools == ({"type": "function", "function": bare},)
        assert ignored == ["parallel_tool_calls"]


PAIR = {"chosen": "3", "rejected": "4"}
TURNS = [message.to_dict() for message in PLAIN]
PAIRS = {
    "with a prompt": ({"prompt": "Add.", **PAIR}, "chosen=completion"),
    "with an instruction": ({"instruction": "Add.", "input": "", **PAIR}, "chosen=completion"),
    "whole conversations": ({"prompt": "Add.", "chosen": TURNS, "rejected": TURNS}, "chosen=completion"),
    "whole conversations, without a prompt": ({"chosen": TURNS, "rejected": TURNS}, "chosen=completion"),
    "whole conversations, with a prompt of messages": (
        {"prompt": TURNS[:1], "chosen": TURNS, "rejected": TURNS},
        "chosen=completion",
    ),
    "LLaMA-Factory": (
        {"conversations": [{"from": "human", "value": "Add."}], "chosen": TURNS[1], "rejected": TURNS[1]},
        "chosen=completion",
    ),
}


@pytest.mark.parametrize(("row", "columns"), PAIRS.values(), ids=PAIRS)
def test_a_preference_pair_is_named_and_its_better_side_can_be_learned(row, columns, tmp_path):
    path = str(write_lines(tmp_path / "pairs.jsonl", row))
    with pytest.raises(DatasetError) as refused:
        teach("qwen3", *read_dataset(path).records)
    assert "a preference pair ('chosen' and 'rejected', for DPO)" in str(refused.value)
    assert f"`--columns {columns}` trains on the chosen side" in str(refused.value)
    found = read_dataset(path, columns=parse_columns(columns))
    assert found.records[0].messages == PLAIN
    assert "rejected" in found.ignored


def test_a_pair_is_a_question_to_distill_and_its_own_messages_are_still_learned():
    question, _ = read_record({"prompt": "Add.", **PAIR}, SOMEWHERE)
    assert question.question == PLAIN[:1]
    assert read_record({"messages": TURNS, **PAIR}, SOMEWHERE)[0].messages == PLAIN


def test_an_answer_that_is_rated_as_bad_is_refused():
    with pytest.raises(DatasetError, match=r"'label' is false.* KTO"):
        read_record({"prompt": "Q", "completion": "A", "label": False}, SOMEWHERE)
    assert read_record({"text": "T", "label": False}, SOMEWHERE)[0].text == "T"


def test_columns_can_be_named(tmp_path):
    row = {"task": "Add.", "solution": "3", "answer": "4", "why": "", "lang": "en"}
    path = str(write_lines(tmp_path / "a.jsonl", row, row | {"why": "Because."}))
    with pytest.raises(DatasetError, match=r"`--columns COLUMN=prompt,COLUMN=completion` says what"):
        read_dataset(path)
    columns = parse_columns("task=prompt, solution=completion,why=reasoning")
    found = read_dataset(path, columns=columns)
    assert [item.messages for item in found.records] == [
        PLAIN,
        (PLAIN[0], Message("assistant", "3", reasoning="Because.")),
    ]
    assert found.ignored == {"answer": 2, "lang": 2}
    alpaca = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    named = {"instruction": "prompt", "output": "completion"}
    assert read_record(alpaca, SOMEWHERE, named) == read_record(alpaca, SOMEWHERE)


BAD_COLUMNS = {
    "task": "'task' does not say which column is which field",
    "task=": "'task' cannot be ''",
    "task=promt": "cannot be 'promt'; a column can be messages, prompt, .*did you mean 'prompt'",
    "a=prompt,b=question": "'a' and 'b' cannot both be the prompt",
    "a=prompt,a=system": "does not say which",
    "": "'' does not say which",
}


@pytest.mark.parametrize(("text", "reason"), BAD_COLUMNS.items())
def test_columns_that_make_no_sense_are_refused(text, reason):
    with pytest.raises(UsageError, match=reason):
        parse_columns(text)


def test_a_column_that_no_row_has_is_refused_with_those_that_there_are(tmp_path):
    path = str(write_lines(tmp_path / "a.jsonl", {"prompt": "Q", "reply": "A"}))
    with pytest.raises(DatasetError, match=r"no row has the column 'repy'; there are prompt, reply; did you"):
        read_dataset(path, columns={"repy": "completion"})
    with pytest.raises(DatasetError, match=r"does not have 'q', which --columns names"):
        read_dataset(str(write_lines(tmp_path / "b.jsonl", {"reply": "A"})), columns={"q": "prompt"})


@pytest.mark.parametrize("columns", ['columns = "a=prompt"', '[data.columns]\na = "prompt"'])
def test_columns_stand_in_a_file_of_settings(tmp_path, columns):
    (tmp_path / "run.toml").write_text(f'model = "m"\n[data]\ndata = "d"\n{columns}\n')
    assert read_run(tmp_path / "run.toml", {}).data.columns == {"a": "prompt"}
    given = {"data": {"columns": {"b": "completion"}}}
    assert read_run(tmp_path / "run.toml", given).data.columns == {"a": "prompt", "b": "completion"}


@pytest.mark.parametrize(
    "column", ["thinking", "reasoning", "reasoning_content", "cot", "thought", "rationale"]
)
def test_reasoning_has_many_names(column):
    row = {"prompt": "Q", column: "Let me see.", "answer": "A"}
    assert read_record(row, SOMEWHERE) == (record("Q", ("Let me see.", "A")), [])


def test_one_word_of_thinking_that_is_no_mode_says_how_it_is_read():
    row = {"prompt": "Q", "thinking": "Hm.", "answer": "A"}
    with pytest.raises(DatasetError, match=re.escape("`--columns thinking=reasoning` reads it")):
        read_record(row, SOMEWHERE)
    assert read_record(row, SOMEWHERE, {"thinking": "reasoning"})[0] == record("Q", ("Hm.", "A"))


ASSEMBLED = {"instruction": "Add.", "input": "1 and 2", "output": "3", "prompt": "### Add. 1 and 2: 3"}
AMBIGUOUS = {
    "a prompt that was put together": (ASSEMBLED, "`--columns instruction=prompt` takes 'instruction'"),
    "a context of a question": (
        {"question": "Add.", "context": "1 and 2", "answer": "3"},
        "`--columns question=instruction` joins the two",
    ),
    "two answers": (
        {"prompt": "Add.\n\n1 and 2", "solution": "4", "answer": "3"},
        "`--columns answer=completion` chooses one",
    ),
    "two questions of a pair": (
        {"prompt": "Other.", "chosen": [m.to_dict() for m in ASKED], "rejected": "4"},
        "`--columns COLUMN=messages` takes",
        {"chosen": "completion"},
        {"chosen": "messages"},
    ),
}


@pytest.mark.parametrize("case", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_columns_that_disagree_are_refused_with_the_option_that_chooses(case):
    row, hint, *named = case
    with pytest.raises(DatasetError, match=re.escape(hint)) as refused:
        read_record(row, SOMEWHERE, named[0] if named else None)
    assert "\n" not in str(refused.value)
    columns = named[1] if named else parse_columns(hint.split("`")[1].removeprefix("--columns "))
    assert read_record(row, SOMEWHERE, columns)[0].messages == ASKED


def test_an_input_that_stands_in_the_prompt_is_no_rival():
    row = {"prompt": "Add 1 and 2.", "input": "1 and 2", "output": "3"}
    assert read_record(row, SOMEWHERE)[1] == ["input"]


def test_a_system_text_is_said_once():
    row = {"prompt": "Add.", "completion": "3", "system": "S"}
    turns = [Message("system", "S").to_dict(), *TURNS]
    expected = read_record(row, SOMEWHERE)[0]
    assert read_record({"messages": turns, "system": "S "}, SOMEWHERE)[0] == expected
    assert (
        read_record({"prompt": turns[:2], "completion": turns[2:], "system": "S"}, SOMEWHERE)[0] == expected
    )


@pytest.mark.parametrize(
    "turns", [[["Add.", "3"]], [{"human": "Add.", "assistant": "3"}], [{"input": "Add.", "output": "3"}]]
)
def test_a_question_and_its_answer_may_be_one_item_of_a_conversation(turns):
    assert read_record({"conversation": turns}, SOMEWHERE)[0].messages == PLAIN


def test_flags_and_calls_of_a_message_may_be_empty_or_text():
    answer = {**TURNS[1], "weight": "", "train": " ", "tool_calls": '[{"name": "f", "arguments": {}}]'}
    found, _ = read_record({"messages": [TURNS[0], answer], "tools": "null"}, SOMEWHERE)
    assert found.weights == (0.0, 1.0)
    assert found.messages[1].tool_calls[0].name == "f"


@pytest.mark.parametrize("column", ["image", "images", "audio", "question_image"])
def test_pictures_and_sounds_beside_a_question_are_refused(column):
    row = {"question": "How many?", "answer": "3"}
    with pytest.raises(DatasetError, match=f"'{column}'"):
        read_record({**row, column: ["a.png"]}, SOMEWHERE)
    assert read_record({**row, column: []}, SOMEWHERE) == read_record(row, SOMEWHERE)
    assert read_record({**row, "file": "a.txt"}, SOMEWHERE)[1] == ["file"]
