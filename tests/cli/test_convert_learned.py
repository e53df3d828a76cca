"""`macmoe convert --quantize dwq4`: what is learned is kept, used again, written and proved."""

from __future__ import annotations

import json

import pytest

from macmoe.checkpoint import parameters_of
from macmoe.cli import learning
from tests.conftest import ROOT

SOURCE = ROOT / "tests" / "assets" / "hub" / "qwen3"


@pytest.fixture
def lessons(monkeypatch):
    """Learn in a moment; count how often."""
    found = []

    def learn(_, student, passages, progress):
        found.append(passages)
        progress(1, 1)
        named = dict(parameters_of(student))
        return {name: array * 1.01 for name, array in named.items() if name.endswith(".scales")}

    monkeypatch.setattr(learning, "learn", learn)
    return found


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": "What is 17 + 25? " * 20}) + "\n" for _ in range(9)))
    return path


def test_what_was_learned_is_written_and_proved(macmoe, tmp_path, lessons, text):
    out = tmp_path / "out"
    command = ("convert", str(SOURCE), "--out", str(out), "--quantize", "dwq4", "--calibration", str(text))
    first = macmoe(*command)
    assert first.exit_code == 0, first.stderr
    assert max(map(len, lessons[0])) == learning.PASSAGE
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    proof = macmoe(*command, "--verify")
    assert proof.exit_code == 0, proof.stderr
    assert "135 source tensors: 135 equal\n" in proof.stderr
    assert len(lessons) == 1
    answer = macmoe("generate", "--model", str(out), "--temperature", "0", "What is 17 + 25?")
    assert "42" in answer.stdout


def test_a_stopped_run_does_not_learn_again(macmoe, tmp_path, lessons, text, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    command = ("convert", str(SOURCE), "--out", str(tmp_path / "out"), "--quantize", "dwq4")
    with monkeypatch.context() as patch:
        patch.setattr("macmoe_converters.Conversion.write", stop)
        assert macmoe(*command, "--calibration", str(text)).exit_code == 130
    assert macmoe(*command, "--calibration", str(text), "--resume").exit_code == 0
    assert len(lessons) == 1


def test_another_text_is_learned_from(macmoe, tmp_path, lessons, text, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    command = ("convert", str(SOURCE), "--out", str(tmp_path / "out"), "--quantize", "dwq4")
    with monkeypatch.context() as patch:
        patch.setattr("macmoe_converters.Conversion.write", stop)
        macmoe(*command, "--calibration", str(text))
    text.write_text(json.dumps({"text": "Another text."}) + "\n")
    assert macmoe(*command, "--calibration", str(text), "--resume").exit_code == 0
    assert len(lessons) == 2


def test_dry_run_learns_nothing(macmoe, lessons):
    result = macmoe("convert", str(SOURCE), "--dry-run", "--quantize", "dwq4")
    assert result.exit_code == 0
    assert "affine 4 bit" in result.stdout
    assert lessons == []


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("no json", 'an object with a "text"'), ('{"words": 1}', 'an object with a "text"')],
)
@pytest.mark.usefixtures("lessons")
def test_a_text_that_is_none_is_one_line(macmoe, tmp_path, text, content, message):
    text.write_text(content)
    out = tmp_path / "out"
    result = macmoe(
        "convert", str(SOURCE), "--out", str(out), "--quantize", "dwq4", "--calibration", str(text)
    )
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == [text]


def test_too_little_memory_is_said_before_anything_is_loaded(macmoe, tmp_path, lessons, monkeypatch):
    monkeypatch.setattr(learning, "memory_limit", lambda: 1_000_000)
    out = tmp_path / "out"
    result = macmoe("convert", str(SOURCE), "--out", str(out), "--quantize", "dwq4")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "learning holds the model and its packed form" in result.stderr
    assert "take --quantize 4bit" in result.stderr
    assert lessons == []


def test_an_existing_output_is_refused_before_learning(macmoe, tmp_path, lessons):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    result = macmoe("convert", str(SOURCE), "--out", str(tmp_path / "out"), "--quantize", "dwq4")
    assert result.exit_code == 1
    assert "exists already" in result.stderr
    assert lessons == []
