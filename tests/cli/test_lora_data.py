"""`macmoe lora preview` and `macmoe lora distill`: what they print, and how they fail."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from macmoe.tuning.config import RunOptions
from macmoe.tuning.prepare import DataOptions
from macmoe.tuning.run import open_run
from tests.tuning.builders import write_lines

THINKS = {"prompt": "What is 3 + 4?", "completion": "The answer is 7.", "reasoning": "3+4=7"}
DIRECT = {"prompt": "What is 3 + 5?", "completion": "The answer is 8."}
TEXT = {"text": "Once upon a time.", "id": 1}


@pytest.fixture
def data(tmp_path):
    return str(write_lines(tmp_path / "data.jsonl", THINKS, DIRECT, TEXT))


def test_preview_shows_samples_and_figures(macmoe, data):
    run = macmoe("lora", "preview", data, "--model", "tiny:deepseek-v3")
    assert run.exit_code == 0, run.output
    assert f"{data}:1: thinking, " in run.stdout
    assert (
        "[prompt, not learned]\n<｜begin▁of▁sentence｜><｜User｜>What is 3 + 4?<｜Assistant｜><think>\n"
        "[learned thinking]\n3+4=7</think>\n"
        "[learned answer]\nThe answer is 7.<｜end▁of▁sentence｜>\n"
    ) in run.stdout
    assert "train: 3 samples (thinking 33%, direct 33%, text 33%)" in run.stdout
    assert "packed: 1 rows" in run.stdout
    assert "truncated or left out for their length: 0.0%" in run.stdout
    assert "column 'id' is not used (1 rows)" in run.stderr


@pytest.mark.parametrize(
    ("kind", "style"), [("prompt", "\x1b[2m"), ("thinking", "\x1b[33m"), ("answer", "\x1b[32m")]
)
def test_preview_tells_prompt_thinking_and_answer_apart_by_color(data, kind, style):
    from click.testing import CliRunner

    from macmoe.cli import cli

    run = CliRunner().invoke(cli, ["lora", "preview", data, "--samples", "3"], color=True)
    starts = {
        "prompt": "<|im_start|>user\nWhat is 3 + 4?",
        "thinking": "<think>\n3+4=7",
        "answer": "\n\nThe answer is 7.",
    }
    assert style + starts[kind] in run.stdout


def test_preview_never_passes_on_what_controls_a_terminal(macmoe, tmp_path):
    path = write_lines(tmp_path / "data.jsonl", {"prompt": "\x1b[2J", "completion": "A\x9b1m"})
    run = macmoe("lora", "preview", str(path))
    assert "\x1b" not in run.stdout
    assert "\x9b" not in run.stdout


def test_preview_writes_json(macmoe, data):
    run = macmoe("lora", "preview", data, "--json", "--samples", "1", "--max-length", "30")
    found = json.loads(run.stdout)["train"]
    assert found["samples"] == 2
    assert found["too_long"] == 1
    assert found["truncated_share"] == pytest.approx(1 / 3)
    assert sum(count for _, _, count in found["histogram"]) == 2
    assert found["packing"]["used"] == found["tokens"]["sample"]["total"] - 2
    assert len(found["shown"]) == 1
    assert any("would not fit" in line for line in found["notes"])


def test_preview_packs_as_the_run_does(macmoe, data, tmp_path):
    options = DataOptions(data=data, max_length=40)
    run = RunOptions(model="tiny:qwen3", data=options, out=tmp_path / "run")
    fill = open_run(run, print)[0].schedule.fill()
    found = macmoe("lora", "preview", data, "--max-length", "40", "--json")
    assert json.loads(found.stdout)["train"]["packing"] == {**asdict(fill), "share": fill.share}


def test_preview_shows_both_splits_and_the_mix(macmoe, tmp_path):
    write_lines(tmp_path / "train.jsonl", THINKS, *[DIRECT | {"prompt": f"{n}"} for n in range(9)])
    write_lines(tmp_path / "valid.jsonl", DIRECT)
    run = macmoe(
        "lora", "preview", str(tmp_path), "--thinking-share", "0.5", "--flag-share", "1", "--samples", "0"
    )
    assert "train: 18 samples (thinking 50%, direct 50%)" in run.stdout
    assert "valid: 1 samples (direct 100%)" in run.stdout


BAD = {
    "a bad row": ([THINKS, "{"], (), "data.jsonl:2: not valid JSON"),
    "no data": ([], (), "has no rows; there is nothing to learn from"),
    "nothing to learn": ([{"prompt": "Q"}], (), "data.jsonl:1: nothing in it is to be learned"),
    "everything too long": ([THINKS], ("--max-length", "4"), "0 are bad, and 1 are longer than 4 tokens"),
    "a mode that is missing": ([THINKS], ("--thinking-share", "0.5"), "no conversation without thinking"),
    "a share too large": (
        [THINKS],
        ("--flag-share", "2"),
        "flag_share is 2.0; it has to lie between 0 and 1",
    ),
    "no such model": ([THINKS], ("--model", "tiny:llama"), "no such built-in model"),
}


@pytest.mark.parametrize(("rows", "options", "reason"), BAD.values(), ids=BAD)
def test_bad_data_is_one_line_and_no_output(macmoe, tmp_path, rows, options, reason):
    path = write_lines(tmp_path / "data.jsonl", *rows)
    run = macmoe("lora", "preview", str(path), *options)
    assert run.exit_code == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: ")
    assert reason in run.stderr
    assert run.stderr.count("\n") == 1


def test_preview_skips_bad_rows_where_that_is_asked_for(macmoe, tmp_path):
    path = write_lines(tmp_path / "data.jsonl", "{", THINKS, {"messages": [{"role": "robot", "content": ""}]})
    run = macmoe("lora", "preview", str(path), "--skip-bad")
    assert run.exit_code == 0
    assert "train: 1 samples" in run.stdout
    assert f"2 bad rows left out, the first: {path}:1: not valid JSON" in run.stderr


def test_preview_reads_named_columns_and_names_the_others_once(macmoe, tmp_path):
    row = {"task": "What is 3 + 4?", "solution": "3+4=7", "answer": "7", "id": 1, "source": "x"}
    path = str(write_lines(tmp_path / "data.jsonl", row, row))
    refused = macmoe("lora", "preview", path)
    assert refused.exit_code == 1
    assert "`--columns COLUMN=prompt,COLUMN=completion`" in refused.stderr
    columns = "task=prompt,solution=reasoning,answer=completion"
    run = macmoe("lora", "preview", path, "--columns", columns, "--json")
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)["train"]
    assert found["notes"] == ["columns 'id', 'source' are not used (2, 2 rows)"]
    assert [part["text"] for part in found["shown"][0]["parts"][1:]] == [
        "<think>\n3+4=7\n</think>",
        "\n\n7<|im_end|>",
    ]


def test_distill_writes_verified_samples_and_goes_on(macmoe, tmp_path):
    questions = write_lines(tmp_path / "questions.jsonl", THINKS, DIRECT, DIRECT | {"answer": None})
    (tmp_path / "check.py").write_text(
        "def check(answer, reference):\n    return answer == reference and '7' in answer\n"
    )
    out = tmp_path / "out.jsonl"
    arguments = ("lora", "distill", str(questions), "--out", str(out), "--max-tokens", "60", "--tries", "2")
    verify = ("--verify", f"{tmp_path / 'check.py'}:check")
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text(questions.read_text().replace('"prompt"', '"task"'))
    named = ("lora", "distill", str(renamed), *arguments[3:], "--columns", "task=prompt")
    run = macmoe(*named, *verify)
    assert run.exit_code == 0, run.output
    (line,) = out.read_text().splitlines()
    user, answer = json.loads(line)["messages"]
    assert (user["content"], answer["content"]) == ("What is 3 + 4?", "The answer is 7.")
    assert "=7" in answer["reasoning"]
    again = macmoe(*arguments, *verify, "--json")
    assert json.loads(again.stdout)["solved"] == 1
    assert json.loads(again.stdout)["questions"] == 2
    other = macmoe(*arguments, "--verify", "exact")
    assert other.exit_code == 1
    assert "was begun with another verifier" in other.stderr
    assert out.read_text().splitlines() == [line]


def test_a_verifier_that_fails_leaves_nothing_in_the_way_of_the_next(macmoe, tmp_path):
    questions = write_lines(tmp_path / "questions.jsonl", THINKS)
    (tmp_path / "check.py").write_text("def check(answer, reference):\n    return 1\n")
    out = tmp_path / "out.jsonl"
    arguments = ("lora", "distill", str(questions), "--out", str(out), "--max-tokens", "60", "--verify")
    failed = macmoe(*arguments, f"{tmp_path / 'check.py'}:check")
    assert failed.exit_code == 1
    assert "must return True or False" in failed.stderr
    assert not list(tmp_path.glob("out.jsonl*"))
    assert macmoe(*arguments, "exact").exit_code == 0
    assert len(list(tmp_path.glob("out.jsonl*"))) == 2


DISTILL_BAD = {
    "an unknown verifier": (("--verify", "luck"), "is no verifier"),
    "a bad pattern": (("--verify", "regex:("), "not a regular expression"),
    "an output without a folder": (("--out", "nowhere/out.jsonl"), "nowhere/out.jsonl: its folder does not"),
    "tries without chance": (
        ("--thinking", "off", "--temperature", "0"),
        "temperature 0 gives the same reply",
    ),
}


@pytest.mark.parametrize(("options", "reason"), DISTILL_BAD.values(), ids=DISTILL_BAD)
def test_distill_refuses_in_one_line_and_leaves_nothing(macmoe, tmp_path, options, reason):
    questions = write_lines(tmp_path / "questions.jsonl", THINKS)
    run = macmoe("lora", "distill", str(questions), "--out", str(tmp_path / "out.jsonl"), *options)
    assert run.exit_code == 1
    assert reason in run.stderr
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_examine_measures_modes_and_answers(macmoe, tmp_path):
    rows = [{"task": row["prompt"], "id": 1, "completion": row["completion"]} for row in (THINKS, DIRECT)]
    questions = write_lines(tmp_path / "questions.jsonl", *rows)
    arguments = ("lora", "examine", str(questions), "--verify", "exact", "--max-tokens", "60")
    arguments += ("--columns", "task=prompt")
    run = macmoe(*arguments, "--mode", "on", "--mode", "off")
    assert run.exit_code == 0, run.output
    assert "column 'id' is not used (2 rows)" in run.stderr
    header, on, off = run.stdout.splitlines()
    assert header.split()[:4] == ["mode", "kept", "complete", "right"]
    assert on.split()[:4] == ["on", "100.0%", "100.0%", "100.0%"]
    assert off.split() == ["off", "100.0%", "100.0%", "100.0%", "0"]
    found = json.loads(macmoe(*arguments, "--mode", "off", "--json").stdout)
    assert found["off"]["asked"] == 2


def test_examine_refuses_a_mode_that_the_model_lacks(macmoe, tmp_path):
    questions = write_lines(tmp_path / "questions.jsonl", THINKS)
    run = macmoe("lora", "examine", str(questions), "--mode", "deep")
    assert run.exit_code == 1
    assert "Qwen3 has no thinking='deep'; it accepts off, on, low, medium, high" in run.stderr
    run = macmoe("lora", "examine", str(questions), "--mode", "/no_think", "--model", "tiny:gpt-oss")
    assert (run.exit_code, run.stdout) == (1, "")
    assert "GPT-OSS reads no /think flags; only Qwen3 does" in run.stderr
