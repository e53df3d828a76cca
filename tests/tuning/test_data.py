"""Data sets in every spelling become the same records; every bad row is one line with file and line."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import Message, ToolCall
from macmoe.errors import DatasetError
from macmoe.tuning.data import find_files, hold_out, read_dataset
from macmoe.tuning.records import Record, read_record, to_row
from tests.tuning.builders import SOMEWHERE, record, write_lines

OWN = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "reasoning": "Because."},
    ]
}
SPELLINGS = {
    "own": OWN,
    "openai": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]},
            {"role": "assistant", "content": "So.", "reasoning_content": "Because.", "weight": 1},
        ]
    },
    "openai with every key": {
        "messages": [
            {"role": "system", "content": "Be brief.", "name": None},
            {"role": "user", "content": "Why?", "id": "m1"},
            {
                "role": "assistant",
                "content": "So.",
                "reasoning": "Because.",
                "reasoning_content": "Because.",
                "refusal": None,
                "annotations": [],
                "audio": {},
                "function_call": "",
                "tool_calls": [],
            },
        ]
    },
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "<think>\nBecause.\n</think>\n\nSo."},
        ],
        "tools": "[]",
    },
    "prompt and completion": {
        "system": "Be brief.",
        "prompt": "Why?",
        "completion": "So.",
        "reasoning": "Because.",
    },
    "question and answer": {
        "system_prompt": "Be brief.",
        "question": "Why?",
        "answer": "So.",
        "cot": "Because.",
    },
    "prompt and completion as messages": {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "completion": [{"role": "assistant", "content": "So.", "thinking": "Because."}],
    },
    "a column for every field, as Parquet has it": {
        "messages": [
            {"role": "system", "content": "Be brief.", "reasoning": None, "tool_calls": None},
            {"role": "user", "content": "Why?", "reasoning": None, "tool_calls": None},
            {"role": "assistant", "content": "So.", "reasoning": "Because.", "tool_calls": None},
        ],
        "text": None,
    },
}
MODES = [
    ({"thinking": True}, "on"),
    ({"enable_thinking": False}, "off"),
    ({"reasoning_effort": "high"}, "high"),
    ({"thinking": "/no_think"}, "off"),
    ({"thinking": None}, None),
]


@pytest.mark.parametrize("row", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_the_same_record(row):
    expected = (
        Message("system", "Be brief."),
        Message("user", "Why?"),
        Message("assistant", "So.", reasoning="Because."),
    )
    found, ignored = read_record(row, SOMEWHERE)
    assert found == Record(place=SOMEWHERE, messages=expected, weights=(0.0, 0.0, 1.0))
    assert not ignored


@pytest.mark.parametrize(("fields", "mode"), MODES)
def test_modes_have_many_names(fields, mode):
    assert read_record({**OWN, **fields}, SOMEWHERE)[0].thinking == mode


def test_train_flags_and_weights_choose_what_is_learned():
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "train": False},
        {"role": "assistant", "content": "A", "weight": 0.25},
        {"from": "gpt", "value": "A", "loss": True},
    ]
    assert read_record({"messages": turns}, SOMEWHERE)[0].weights == (0.0, 0.0, 0.25, 1.0)


@pytest.mark.parametrize(
    "value", ['{"name": "f", "arguments": {"a": 1}}', [{"name": "f", "input": {"a": 1}}]]
)
def test_calls_may_be_a_role_of_their_own(value):
    turns = [{"from": "human", "value": "Q"}, {"from": "function_call", "value": value}]
    turns.append({"from": "observation", "value": "3"})
    found, _ = read_record({"conversations": turns}, SOMEWHERE)
    assert found.messages[1] == Message("assistant", "", tool_calls=(ToolCall("f", {"a": 1}),))
    assert found.weights == (0.0, 1.0, 0.0)


def test_what_no_model_reads_of_a_message_is_counted():
    turns = [{"role": "user", "content": "Q", "timestamp": 7}, {"role": "assistant", "content": "A"}]
    assert read_record({"messages": turns}, SOMEWHERE)[1] == ["messages.timestamp"]


def test_columns_without_a_meaning_are_counted(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", {**OWN, "id": 7, "prompt": "Why?"}, {**OWN, "id": 8}, {"text": "T"}
    )
    found = read_dataset(str(path))
    assert [len(item.messages) for item in found.records] == [3, 3, 0]
    assert found.ignored == {"id": 2, "prompt": 1}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(deadline=None, max_examples=50)
@given(
    turns=st.lists(st.tuples(st.none() | TEXTS, TEXTS), min_size=1, max_size=3),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
    thinking=st.sampled_from([None, "off", "on", "high"]),
)
def test_a_record_is_read_as_it_was_written(turns, weight, thinking):
    messages = [
        message
        for reasoning, content in turns
        for message in (Message("user", content), Message("assistant", f"A {content}", reasoning=reasoning))
    ]
    written = record(messages=tuple(messages), weights=(0.0, weight) * len(turns), thinking=thinking)
    assert read_record(json.loads(json.dumps(to_row(written))), SOMEWHERE) == (written, [])


def row(*messages, **fields):
    return {"messages": [{"role": "user", "content": "Q"}, *messages], **fields}


def answer(**fields):
    return {"role": "assistant", "content": "A", **fields}


BAD_ROWS = {
    "invalid JSON": ('{"text": ', "not valid JSON"),
    "no object": ("[1, 2]", "must be a JSON object, not list"),
    "endless nesting": ("[" * 100_000, "not valid JSON"),
    "no form": ({"mesages": []}, "has none of the forms messages, prompt + completion, prompt, text"),
    "an empty object": ({}, "has none of the forms"),
    "no messages": ({"messages": []}, "has no messages"),
    "messages that are no list": ({"messages": {"role": "user"}}, "messages must be a list, not dict"),
    "messages as text that is no JSON": ({"messages": "hello"}, "text but no JSON list"),
    "a message that is text": ({"messages": ["hello"]}, "a message must be an object, not str"),
    "an unknown role": (row({"role": "robot", "content": "A"}), "'robot' is no role"),
    "no role": (row({"content": "A"}), "is no role"),
    "a role that is a number": (row({"role": 3, "content": "A"}), "3 is no role"),
    "content that is a number": (row(answer(content=3)), "must be text, not 3"),
    "no content": (row({"role": "assistant"}), "must be text, not None"),
    "content that is a picture": (row(answer(content=[{"type": "image_url"}])), "has a part that is no text"),
    "reasoning that is a list": (row(answer(reasoning=["R"])), "reasoning of a message must be text"),
    "reasoning of a user": (
        {"messages": [{"role": "user", "content": "Q", "reasoning": "R"}]},
        "cannot have",
    ),
    "an unknown key": (row(answer(wieght=1)), "unknown key 'wieght'"),
    "a train flag that is text": (row(answer(train="yes")), "must be true or false, not 'yes'"),
    "a negative weight": (row(answer(weight=-1)), "must be a number from 0 up, not -1"),
    "an endless weight": (row(answer(weight=float("inf"))), "must be a number from 0 up, not inf"),
    "a weight that is a flag": (row(answer(weight=True)), "must be a number from 0 up, not True"),
    "a user to learn": ({"messages": [{"role": "user", "content": "Q", "train": True}]}, "cannot be learned"),
    "an unknown mode": (row(answer(), thinking="deep"), "thinking must be one of off, on, low, medium, high"),
    "a mode that is a list": (row(answer(), thinking=[1]), "thinking must be one of"),
    "tools that are no list": (row(answer(), tools={"f": 1}), "tools must be a list, not dict"),
    "two contents": (
        row({"role": "assistant", "content": "A", "value": "B"}),
        "both give the content, and differ",
    ),
    "two completions": (
        {"prompt": "Q", "answer": "A", "output": "B"},
        "both give the completion, and differ",
    ),
    "an empty text": ({"text": " "}, "text must be text that is not empty"),
    "a prompt that is a number": ({"prompt": 3, "completion": "A"}, "prompt must be a list, not int"),
    "reasoning apart from messages": (
        {"prompt": "Q", "completion": [answer()], "reasoning": "R"},
        "put it into its message",
    ),
}


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_one_line_with_file_and_line(tmp_path, bad, reason):
    path = write_lines(tmp_path / "data.jsonl", OWN, "", bad, OWN)
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))}:3: .*{re.escape(reason)}") as failure:
        read_dataset(str(path))
    assert "\n" not in str(failure.value)
    found = read_dataset(str(path), skip_bad=True)
    assert len(found.records) == 2
    assert found.rejected == (str(failure.value),)


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(DatasetError, match=r"data.jsonl:2: not UTF-8"):
        read_dataset(str(path))


def test_a_json_file_is_a_list_or_lines(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([OWN, OWN]))
    write_lines(tmp_path / "lines.json", OWN, OWN)
    one, other = (read_dataset(str(tmp_path / f"{name}.json")).records for name in ("list", "lines"))
    assert [item.messages for item in one] == [item.messages for item in other]
    (tmp_path / "list.json").write_text(json.dumps([OWN, 3]))
    with pytest.raises(DatasetError, match=r"list.json:2: a row must be"):
        read_dataset(str(tmp_path / "list.json"))
    (tmp_path / "list.json").write_text("[1,")
    with pytest.raises(DatasetError, match=r"list.json: not valid JSON"):
        read_dataset(str(tmp_path / "list.json"))


def test_parquet_says_the_same_as_json_lines(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [OWN, {"messages": OWN["messages"][1:]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    lines = read_dataset(str(write_lines(tmp_path / "data.jsonl", *rows))).records
    found = read_dataset(str(tmp_path / "data.parquet")).records
    assert [item.messages for item in found] == [item.messages for item in lines]
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"data.parquet: not a readable Parquet file"):
        read_dataset(str(tmp_path / "data.parquet"))


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "data.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"pip install 'macmoe\[data\]'"):
        read_dataset(str(tmp_path / "data.parquet"))


def test_a_folder_has_splits_by_name(tmp_path):
    names = (
        "train-00000.jsonl",
        "train-00001.jsonl",
        "validation.jsonl",
        "test/a.jsonl",
        "other.jsonl",
        ".x.jsonl",
    )
    (tmp_path / "test").mkdir()
    for name in names:
        write_lines(tmp_path / name, {"text": name})
    found = {split: [file.name for file in files] for split, files in find_files(str(tmp_path)).items()}
    assert found == {
        "train": ["train-00000.jsonl", "train-00001.jsonl"],
        "valid": ["validation.jsonl"],
        "test": ["a.jsonl"],
        "": ["other.jsonl"],
    }
    train = read_dataset(str(tmp_path))
    assert [item.text for item in train.records] == ["train-00000.jsonl", "train-00001.jsonl"]
    assert train.unused == (str(tmp_path / "other.jsonl"),)


def test_a_folder_without_split_names_is_all_for_training(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write_lines(tmp_path / name, {"text": name})
    assert [item.text for item in read_dataset(str(tmp_path)).records] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(DatasetError, match="has no split 'valid'; name a file valid"):
        read_dataset(str(tmp_path), "valid")


def test_missing_and_empty_data_sets_are_one_line(tmp_path):
    write_lines(tmp_path / "empty.jsonl", "")
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.csv").write_text("a,b\n")
    reasons = {
        tmp_path / "empty.jsonl": "has no rows; there is nothing to learn from",
        tmp_path / "folder": "holds no files that end in .jsonl",
        tmp_path / "absent.jsonl": "no such file or folder",
        tmp_path / "data.csv": "not a file of training data",
        "nobody/nothing": "not a folder here, and",
    }
    for path, reason in reasons.items():
        with pytest.raises(DatasetError, match=re.escape(reason)):
            read_dataset(str(path))
    write_lines(tmp_path / "bad.jsonl", "{", "{")
    with pytest.raises(DatasetError, match="has no rows, only 2 bad ones"):
        read_dataset(str(tmp_path / "bad.jsonl"), skip_bad=True)


def test_a_data_set_on_the_hub_is_downloaded(tmp_path, monkeypatch):
    write_lines(tmp_path / "train.jsonl", OWN)
    calls = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **options: calls.append((repo, options)) or tmp_path
    )
    assert len(read_dataset("owner/name").records) == 1
    assert calls[0][0] == "owner/name"
    assert calls[0][1]["repo_type"] == "dataset"


def test_held_out_records_share_no_question_with_the_rest():
    records = [record(f"Q{number % 40}", f"A{number}", "Q", "A") for number in range(200)]
    learned, held_out = hold_out(records, 0.2)
    questions = [{item.messages[0].content for item in part} for part in (learned, held_out)]
    assert not questions[0] & questions[1]
    assert len(learned) + len(held_out) == 200
    assert 2 < len(questions[1]) < 16
    assert hold_out(records[::-1], 0.2)[1] == held_out[::-1]
    with pytest.raises(DatasetError, match="cannot give up 50%"):
        hold_out(records[:1], 0.5)
