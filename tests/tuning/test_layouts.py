"""JSON files in layouts that are no lines of rows give the rows that they hold, or say what they are."""

from __future__ import annotations

import json

import pytest

from macmoe.errors import DatasetError
from macmoe.tuning.data import read_dataset

ONE = {"prompt": "Q1", "completion": "A1"}
TWO = {"prompt": "Q2", "completion": "A2"}
LAYOUTS = {
    "lines": f"{json.dumps(ONE)}\n\n{json.dumps(TWO)}",
    "rows over several lines": f"{json.dumps(ONE, indent=2)}\n{json.dumps(TWO, indent=2)}\n",
    "rows without a line between": json.dumps(ONE) + json.dumps(TWO),
    "a list": json.dumps([ONE, TWO]),
    "a pretty list": json.dumps([ONE, TWO], indent=2),
    "a list under a key": json.dumps({"version": 1, "data": [ONE, TWO]}, indent=1),
    "an object of rows": json.dumps({"a": ONE, "b": TWO}),
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
def test_rows_are_found_in_every_layout(tmp_path, text, suffix, mark):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(mark + text.replace("\n", "\r\n").encode())
    assert [item.messages[0].content for item in read_dataset(str(path)).records] == ["Q1", "Q2"]


def test_one_row_is_a_row_also_where_its_columns_have_other_names(tmp_path):
    path = tmp_path / "one.json"
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    path.write_text(json.dumps({"id": 1, "turns": turns}, indent=2))
    (found,) = read_dataset(str(path), columns={"turns": "messages"}).records
    assert len(found.messages) == 2


REFUSED = {
    "pandas' columns": (
        {"prompt": {"0": "Q"}, "completion": {"0": "A"}},
        "holds columns .*orient='records'",
    ),
    "columns as lists": ({"prompt": ["Q", "R"], "completion": ["A", "B"]}, "holds columns"),
    "two splits": ({"train": [ONE], "test": [TWO]}, r"several lists of rows \('train', 'test'\)"),
}


@pytest.mark.parametrize(("value", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_holds_no_rows_says_what_to_do(tmp_path, value, reason):
    (tmp_path / "data.json").write_text(json.dumps(value))
    with pytest.raises(DatasetError, match=reason) as refused:
        read_dataset(str(tmp_path / "data.json"))
    assert "\n" not in str(refused.value)


def test_a_list_that_breaks_off_is_named_by_its_line(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps([ONE, TWO], indent=1)[:-2])
    with pytest.raises(DatasetError, match=r"data.jsonl: not valid JSON \(.* at line 9\)"):
        read_dataset(str(tmp_path / "data.jsonl"))


def test_lines_with_a_bad_one_at_the_start_are_still_lines(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"prompt": \n{json.dumps(ONE)}\n{json.dumps(TWO)}\n')
    with pytest.raises(DatasetError, match=r"data.jsonl:1: not valid JSON .* a row is one line"):
        read_dataset(str(path))
    assert len(read_dataset(str(path), skip_bad=True).records) == 2
