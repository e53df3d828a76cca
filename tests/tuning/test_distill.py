"""Distillation keeps verified replies only, is reproducible, and goes on where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import macmoe
from macmoe.chat import Message
from macmoe.chat.format import EFFORT_BUDGETS
from macmoe.errors import DatasetError, UsageError
from macmoe.sampling import SamplingOptions
from macmoe.tuning import replies
from macmoe.tuning.data import read_dataset
from macmoe.tuning.distill import DistillOptions, distill
from macmoe.tuning.evaluation import examine, modes_of
from macmoe.tuning.replies import Question, ask
from macmoe.tuning.unpacking import keep_packed
from macmoe.tuning.verifiers import open_verifier
from tests.assets.questions import exam
from tests.tuning.builders import record, teach, write_lines

EXACT = open_verifier("exact")
OPTIONS = DistillOptions(tries=2, block=3, max_tokens=100, sampling=SamplingOptions(temperature=1.2, seed=3))


@pytest.fixture(scope="module")
def session():
    return macmoe.load("tiny:qwen3")


@pytest.fixture(scope="module")
def questions():
    """Eight easy questions; the references of two are wrong, so that no reply to them can be kept."""
    asked = exam("distill", 16)[:8]
    replies = ["wrong" if number in (1, 4) else question.reply for number, question in enumerate(asked)]
    return [record(question.text, reply) for question, reply in zip(asked, replies, strict=True)]


@pytest.fixture(scope="module")
def finished(session, questions, tmp_path_factory):
    path = tmp_path_factory.mktemp("distilled") / "out.jsonl"
    return path, distill(session, questions, EXACT, OPTIONS, path)


def test_only_verified_replies_with_thinking_are_kept(finished, questions):
    path, tally = finished
    found = read_dataset(str(path)).records
    references = {item.messages[0].content: item.reference for item in questions}
    assert tally.kept == tally.solved == len(found) > 3
    assert tally.questions == 8
    assert tally.tries == tally.kept + sum(tally.rejected.values())
    assert tally.rejected["wrong"] >= 4
    for item in found:
        assert item.reference == references[item.messages[0].content] != "wrong"
        assert item.thinks
        assert item.thinking is None, "its mode is plain to see, and flags may be added"


def test_kept_replies_can_be_learned_by_every_family(finished):
    found = read_dataset(str(finished[0])).records
    for family in ("qwen3", "gpt_oss", "deepseek_v3"):
        assert {lesson.mode for lesson in teach(family, *found).lessons} == {"thinking"}


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_end(session, questions, finished, tmp_path, cut):
    """Cut the files as a kill at any moment could leave them: after a block, in a row, in the journal."""
    path, tally = finished
    lines = path.with_name("out.jsonl.journal").read_bytes().splitlines(keepends=True)
    size = json.loads(lines[1])["bytes"]
    data = path.read_bytes()
    partial = tmp_path / "out.jsonl"
    partial.write_bytes([data[:size], data[: size + 20], data][cut])
    partial.with_name("out.jsonl.journal").write_bytes(b"".join(lines[:2]) + [b"", b"", lines[2][:10]][cut])
    assert distill(session, questions, EXACT, OPTIONS, partial) == tally
    assert partial.read_bytes() == data


def test_a_finished_run_asks_nothing_again(questions, finished):
    path, tally = finished
    assert distill(None, questions, EXACT, OPTIONS, path) == tally  # type: ignore[arg-type]


CHANGES = {
    r"another tries \(\d+, not 3\)": lambda questions: (questions, EXACT, replace(OPTIONS, tries=3), ""),
    r"another temperature \(1.2, not 0.5\)": lambda questions: (
        questions,
        EXACT,
        replace(OPTIONS, sampling=replace(OPTIONS.sampling, temperature=0.5)),
        "",
    ),
    r"another verifier \('exact', not 'regex:.'\)": lambda questions: (
        questions,
        open_verifier("regex:."),
        OPTIONS,
        "",
    ),
    "other questions": lambda questions: (questions[1:], EXACT, OPTIONS, ""),
    r"another model \('', not 'mine'\)": lambda questions: (questions, EXACT, OPTIONS, "mine"),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_run_is_not_continued_with_other_settings(session, questions, finished, changed):
    others, verifier, options, source = CHANGES[changed](questions)
    before = finished[0].read_bytes()
    message = f"was begun with {changed}; .* or delete .*out.jsonl and .*out.jsonl.journal to begin anew"
    with pytest.raises(DatasetError, match=message):
        distill(session, others, verifier, options, finished[0], source=source)
    assert finished[0].read_bytes() == before


def test_a_file_of_something_else_is_not_touched(session, questions, tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", {"text": "T"})
    with pytest.raises(DatasetError, match="exists, and is not overwritten"):
        distill(session, questions, EXACT, OPTIONS, path)
    path.with_name("mine.jsonl.journal").write_text("{}\n")
    with pytest.raises(DatasetError, match="not a journal"):
        distill(session, questions, EXACT, OPTIONS, path)
    assert read_dataset(str(path)).records[0].text == "T"


def test_replies_in_the_other_mode_or_cut_are_not_kept(session, tmp_path):
    """A verifier that accepts everything cannot make a cut reply, or one without thinking, a sample."""
    short = replace(OPTIONS, tries=1, max_tokens=4)
    tally = distill(session, [record("What is 3 + 4?")], open_verifier("regex:"), short, tmp_path / "a.jsonl")
    assert (tally.kept, tally.rejected["cut"]) == (0, 1)
    flagged = record("What is 3 + 4?")
    direct = replace(OPTIONS, tries=1, thinking="off")
    tally = distill(session, [flagged, flagged], open_verifier("regex:"), direct, tmp_path / "b.jsonl")
    assert (tally.questions, tally.kept) == (1, 1)
    (found,) = read_dataset(str(tmp_path / "b.jsonl")).records
    assert (found.thinks, found.thinking) == (False, None)


def test_a_level_of_thinking_stays_with_the_sample(tmp_path):
    level = replace(OPTIONS, thinking="high", tries=1)
    questions = [record("What is 3 + 4?")]
    distill(macmoe.load("tiny:gpt-oss"), questions, open_verifier("regex:"), level, tmp_path / "a.jsonl")
    (found,) = read_dataset(str(tmp_path / "a.jsonl")).records
    assert found.thinking == "high"


@pytest.mark.parametrize("changes", [{"tries": 0}, {"block": 0}, {"sampling": SamplingOptions()}])
def test_options_without_sense_are_refused(changes):
    with pytest.raises(UsageError):
        replace(OPTIONS, **changes)


def test_no_questions_and_missing_references_are_errors(session, tmp_path):
    with pytest.raises(DatasetError, match="there are no questions"):
        distill(session, [record(messages=(), weights=(), text="T")], EXACT, OPTIONS, tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="no reference answer"):
        distill(session, [record("What is 3 + 4?")], EXACT, OPTIONS, tmp_path / "b.jsonl")


@pytest.mark.parametrize("name", ["tiny:qwen3", "tiny:gpt-oss", "tiny:deepseek-v3"])
def test_questions_asked_together_get_the_replies_they_get_alone(name):
    session = macmoe.load(name)
    asked = [
        Question(messages=(Message("user", question.text),), thinking=mode)
        for question, mode in zip(exam("batch", 4), ("on", "off", "on", "off"), strict=True)
    ]
    together = ask(session, asked, SamplingOptions(), 25)
    assert together[:1] == ask(session, asked[:1], SamplingOptions(), 25)
    for question, reply in zip(asked, together, strict=True):
        events = list(
            session.generate(question.messages, thinking=question.thinking, max_tokens=25, temperature=0)
        )
        texts = [
            "".join(e.text for e in events if isinstance(e, kind))
            for kind in (macmoe.ThinkingText, macmoe.AnswerText)
        ]
        assert texts == [reply.reasoning, reply.answer]
        assert reply.complete == (events[-1].stop_reason == "stop")
        assert reply.thinking_tokens == events[-1].thinking_tokens


LEVELS = ("low", "on", "medium", "off", "high")


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("tiny:qwen3", LEVELS),
        ("tiny:deepseek-v3", ("low", "off")),
        pytest.param("tiny:deepseek-v3", LEVELS, marks=pytest.mark.long),
    ],
)
def test_a_level_of_thinking_is_closed_in_a_batch_as_it_is_alone(name, modes, monkeypatch):
    monkeypatch.setitem(EFFORT_BUDGETS, "low", 5)
    monkeypatch.setitem(EFFORT_BUDGETS, "medium", 9)
    session = macmoe.load(name)
    asked = [
        Question(messages=(Message("user", question.text),), thinking=mode)
        for question, mode in zip(exam("levels", 8), modes, strict=False)
    ]
    cut = []
    for question, reply in zip(asked, ask(session, asked, SamplingOptions(), 200), strict=True):
        *events, stats = session.generate(question.messages, thinking=question.thinking, temperature=0)
        texts = [
            "".join(e.text for e in events if isinstance(e, kind))
            for kind in (macmoe.ThinkingText, macmoe.AnswerText)
        ]
        assert [reply.reasoning, reply.answer, reply.thinking_tokens] == [*texts, stats.thinking_tokens]
        assert reply.complete
        cut.append(stats.thinking_cut)
    assert cut == [mode in ("low", "medium") for mode in modes]


@pytest.mark.parametrize("name", ["tiny:qwen3", "tiny:gpt-oss", "tiny:deepseek-v3"])
def test_prompts_of_a_batch_are_read_in_chunks_of_bounded_size(name, monkeypatch):
    session = macmoe.load(name)
    texts = ["What is 17 + 25?", " ".join(["What is 347 + 586?"] * 4), "What is 3 + 4?"]
    asked = [Question(messages=(Message("user", text),), thinking="on") for text in texts]
    at_once = ask(session, asked, SamplingOptions(), 4)
    kind, sizes = type(session.model), []
    hidden = kind.hidden
    monkeypatch.setattr(kind, "hidden", lambda self, x, *a: sizes.append(x.size) or hidden(self, x, *a))
    monkeypatch.setattr("macmoe.generate.prefill_chunk", lambda _: 12)
    assert ask(session, asked, SamplingOptions(), 4) == at_once
    assert max(sizes) == 12


def test_the_examination_counts_modes_and_right_answers(session, questions):
    assert modes_of(session) == ("on", "off", "/think", "/no_think")
    easy = [item for item in questions if item.reference != "wrong"][:4]
    results = examine(session, easy, ("on", "off"), EXACT, max_tokens=100, batch=3)
    assert [result.asked for result in results.values()] == [4, 4]
    assert [result.followed for result in results.values()] == [1.0, 1.0]
    assert results["on"].correct == results["on"].complete == 1.0
    assert results["on"].thinking_tokens > 5 > results["off"].thinking_tokens == 0
    wrong = [replace(item, messages=(*item.question, Message("assistant", "no"))) for item in easy]
    assert examine(session, wrong, ("off",), EXACT, max_tokens=100)["off"].correct == 0
    assert examine(session, wrong, ("off",), max_tokens=100)["off"].correct is None


def test_a_flag_is_a_mode_of_its_own(session):
    results = examine(session, [record("What is 3 + 4?")], ("/think",), max_tokens=60)
    assert results["/think"].asked == 1
    with pytest.raises(DatasetError, match="no questions to examine"):
        examine(session, [], ("on",))


@pytest.mark.parametrize("tokens", [12, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["tiny:gpt-oss", "tiny:deepseek-v3"])
def test_replies_are_the_same_where_matrices_are_unpacked_for_them(name, tokens, monkeypatch):
    session = macmoe.load(name)
    asked = [Question(messages=(Message("user", item.text),), thinking="on") for item in exam("fast", 4)]
    modules = [type(module) for module in session.model.modules()]
    packed = ask(session, asked, SamplingOptions(), tokens)
    exchanged = []
    monkeypatch.setattr(replies, "UNPACKED_FROM", len(asked))
    monkeypatch.setattr(replies, "keep_packed", lambda model: exchanged.append(model) or keep_packed(model))
    assert ask(session, asked, SamplingOptions(), tokens) == packed
    assert exchanged == [session.model]
    assert [type(module) for module in session.model.modules()] == modules
