"""Verifiers accept right answers, and say in one line what is wrong with themselves."""

from __future__ import annotations

import pytest

from macmoe.errors import UsageError
from macmoe.tuning.verifiers import open_verifier

ANSWERS = [
    ("exact", " The answer\nis 4. ", "The answer is 4.", True),
    ("exact", "The answer is 5.", "The answer is 4.", False),
    (r"regex:answer is (\d+)", "So the answer is 42.", "42", True),
    (r"regex:answer is (\d+)", "So the answer is 42.", "43", False),
    (r"regex:answer is (\d+)", "I do not know.", "42", False),
    (r"regex:^\d+$", "42", None, True),
    (r"regex:^\d+$", "forty-two", None, False),
]
BAD_NAMES = {
    "fuzzy": "is no verifier; give exact, regex:PATTERN or FILE.py:FUNCTION",
    "regex:(": "not a regular expression",
    "absent.py:check": "no such file",
    "{file}:other": "has no function other",
    "{broken}:check": "does not load \\(NameError",
    "{leaving}:check": "does not load \\(SystemExit: 3\\)",
}


@pytest.mark.parametrize(("name", "answer", "reference", "right"), ANSWERS)
def test_answers_are_accepted_or_not(name, answer, reference, right):
    assert open_verifier(name).accepts(answer, reference) is right


@pytest.fixture
def files(tmp_path):
    (tmp_path / "check.py").write_text(
        "def check(answer, reference):\n    return answer == reference\n"
        "def fail(answer, reference):\n    return 1 / 0\n"
        "def count(answer, reference):\n    return 1\n"
        "def leave(answer, reference):\n    raise SystemExit(3)\n"
    )
    (tmp_path / "broken.py").write_text("undefined\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    return {
        "file": tmp_path / "check.py",
        **{name: tmp_path / f"{name}.py" for name in ("broken", "leaving")},
    }


def test_a_function_of_the_user_decides(files):
    verifier = open_verifier(f"{files['file']}:check")
    assert verifier.accepts("4", "4")
    assert not verifier.accepts("5", "4")


@pytest.mark.parametrize(("name", "reason"), BAD_NAMES.items())
def test_a_name_without_meaning_is_refused(files, name, reason):
    with pytest.raises(UsageError, match=reason):
        open_verifier(name.format(**files))


@pytest.mark.parametrize(
    ("function", "reason"),
    [("fail", "ZeroDivisionError"), ("count", "True or False, not 1"), ("leave", "SystemExit: 3")],
)
def test_a_function_that_fails_is_named(files, function, reason):
    with pytest.raises(UsageError, match=rf"check.py:{function} .*{reason}"):
        open_verifier(f"{files['file']}:{function}").accepts("4", "4")


def test_a_missing_reference_is_not_a_wrong_answer():
    with pytest.raises(UsageError, match="no reference answer"):
        open_verifier("exact").accepts("4", None)
