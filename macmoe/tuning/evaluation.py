"""Does the model think exactly when it is asked to, and does it answer held-out questions right?

Mode following after ThinkFollow (arXiv:2505.09388, section 4.6): each question is asked in each mode, and the
reply has to think in all modes but those that forbid it. The flags of Qwen3 are modes of their own here.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from macmoe.chat.format import Thinking
from macmoe.errors import DatasetError, UsageError
from macmoe.sampling import SamplingOptions
from macmoe.session import Session
from macmoe.tuning.flags import FLAGGED_MODELS, NO_THINK, THINK, check_reads_flags
from macmoe.tuning.records import Question, Record
from macmoe.tuning.replies import Reply, ask
from macmoe.tuning.verifiers import Verifier

SILENT = ("off", NO_THINK)  # the modes that forbid thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeResult:
    """How the model did in one mode.

    Attributes:
        asked: Number of questions.
        followed: The share of replies that thought, or did not, as the mode demands.
        complete: The share of replies that the model ended by itself.
        correct: The share of replies that are complete and right; None without a verifier.
        thinking_tokens: Tokens of thinking, on average.
    """

    asked: int
    followed: float
    complete: float
    correct: float | None
    thinking_tokens: float


def modes_of(session: Session) -> tuple[str, ...]:
    """Return the modes in which a model can be examined: with and without thinking, and its flags."""
    modes = tuple(mode for mode in ("on", "off") if mode in session.format.settings)
    return (*modes, THINK, NO_THINK) if session.format.model in FLAGGED_MODELS else modes


def examine(
    session: Session,
    records: Sequence[Record],
    modes: Sequence[str],
    verifier: Verifier | None = None,
    *,
    max_tokens: int = 1024,
    batch: int = 16,
    sampling: SamplingOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, ModeResult]:
    """Ask all questions in each mode and return how the model did.

    Args:
        session: The model.
        records: The questions; a last answer is the reference.
        modes: Settings of thinking, or a flag, which is appended to the question.
        verifier: Decides which answers are right.
        max_tokens: The most tokens of a reply.
        batch: Questions that are answered together.
        sampling: How to choose tokens; None takes the most probable ones.
        progress: Called with (replies so far, replies in all).

    Raises:
        DatasetError: There are no questions.
        ChatFormatError: The model has no such mode.
        UsageError: A mode is a flag, which the model does not read; see also `ask` and the verifier.
    """
    asked = [record for record in records if record.question]
    if not asked:
        raise DatasetError("there are no questions to examine the model with")
    if {THINK, NO_THINK} & set(modes):
        check_reads_flags(session.format.model)
    results = {}
    for number, mode in enumerate(modes):
        replies: list[Reply] = []
        for start in range(0, len(asked), batch):
            questions = [_in_mode(record, mode) for record in asked[start : start + batch]]
            replies += ask(session, questions, sampling or SamplingOptions(), max_tokens)
            if progress is not None:
                progress(number * len(asked) + len(replies), len(modes) * len(asked))
        results[mode] = _result(asked, replies, mode, verifier)
    return results


def _in_mode(record: Record, mode: str) -> Question:
    if mode not in (THINK, NO_THINK):
        return record.as_question(cast("Thinking", mode))
    *earlier, last = record.question
    if last.role != "user":
        raise UsageError(f"{mode} has to stand in a question, but a {last.role} message comes last")
    flagged = replace(last, content=f"{last.content} {mode}")
    return replace(record.as_question("on"), messages=(*earlier, flagged))


def _result(
    records: Sequence[Record], replies: Sequence[Reply], mode: str, verifier: Verifier | None
) -> ModeResult:
    correct = None
    if verifier is not None:
        pairs = zip(records, replies, strict=True)
        right = [
            reply.complete and verifier.accepts(reply.answer, record.reference) for record, reply in pairs
        ]
        correct = statistics.fmean(right)
    return ModeResult(
        asked=len(replies),
        followed=statistics.fmean(reply.thinks != (mode in SILENT) for reply in replies),
        complete=statistics.fmean(reply.complete for reply in replies),
        correct=correct,
        thinking_tokens=statistics.fmean(reply.thinking_tokens for reply in replies),
    )
