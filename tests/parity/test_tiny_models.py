"""The built-in models answer held-out questions as transformers does, token by token, and thinking pays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch

import macmoe
from macmoe.chat.format import Thinking
from macmoe.chat.messages import Message
from macmoe.families import Model
from macmoe.generate import generate
from macmoe.location import find_model
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.session import Session, load_model
from tests.assets.questions import Question, exam, read_answer
from tests.conftest import ROOT
from tests.parity.bench import Ids, decoded_parameters
from tests.parity.builder import reference, unpack

pytestmark = pytest.mark.parity

BUILT_IN = {"qwen3": "tiny:qwen3", "gpt_oss": "tiny:gpt-oss", "deepseek_v3": "tiny:deepseek-v3"}
BATCH = 50
MAX_TOKENS = 320
# In the order of their workings' lengths, so that the answers of a batch end at about the same time.
QUESTIONS = sorted(exam("parity", 300), key=lambda question: len(question.thinking))
HARD = [question for question in QUESTIONS if question.hard]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A built-in model asked in one way.

    Attributes:
        family: Which model.
        thinking: Setting of the prompts.
        questions: What is asked.
    """

    family: str
    thinking: Thinking
    questions: list[Question]

    def share(self, step: int) -> Paper:
        """Return the paper with every `step`th of its questions."""
        return replace(self, questions=self.questions[::step])

    def session(self) -> Session:
        """Load the built-in model."""
        return macmoe.load(BUILT_IN[self.family], dtype="float32")

    def prompts(self, session: Session) -> list[list[int]]:
        """Write the prompts."""
        conversations = [[Message("user", question.text)] for question in self.questions]
        rendered = [session.format.render(messages, thinking=self.thinking) for messages in conversations]
        return [session.tokenizer.encode_segments(segments) for segments in rendered]


PAPERS = {
    "qwen3-thinking": Paper(family="qwen3", thinking="on", questions=QUESTIONS),
    "qwen3-direct": Paper(family="qwen3", thinking="off", questions=HARD),
    "gpt-oss-thinking": Paper(family="gpt_oss", thinking="medium", questions=QUESTIONS),
    "gpt-oss-direct": Paper(family="gpt_oss", thinking="off", questions=HARD),
    "deepseek-thinking": Paper(family="deepseek_v3", thinking="on", questions=QUESTIONS),
    "deepseek-direct": Paper(family="deepseek_v3", thinking="off", questions=HARD),
}


@pytest.mark.parametrize("step", [20, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", PAPERS)
def test_every_token_of_every_answer_is_transformers_choice(tmp_path: Path, name: str, step: int):
    paper = PAPERS[name].share(step)
    session = paper.session()
    _unpack(paper.family, tmp_path)
    # Packed products are slow on a CPU; these are the same weights, as the tests below show.
    model, judge = load_model(tmp_path, "float32")[1], reference(tmp_path)
    prompts = paper.prompts(session)
    answers: list[list[int]] = []
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        answered = _greedy(model, batch, _stop_ids(session))
        whole = _padded([prompt + answer for prompt, answer in zip(batch, answered, strict=True)], left=False)
        with torch.no_grad():
            choices = judge(torch.from_numpy(whole)).logits.argmax(-1).tolist()
        for prompt, answer, row in zip(batch, answered, choices, strict=True):
            assert row[len(prompt) - 1 : len(prompt) + len(answer) - 1] == answer
        answers += answered
    _check_accuracy(paper, session, answers)


@pytest.mark.parametrize("step", [300, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", PAPERS)
def test_the_packed_model_writes_what_transformers_writes(tmp_path: Path, name: str, step: int):
    paper = PAPERS[name].share(step)
    session = paper.session()
    _unpack(paper.family, tmp_path)
    prompts, stops = paper.prompts(session), _stop_ids(session)
    tokens = torch.from_numpy(_padded(prompts, left=True))
    mask = torch.from_numpy(_padded([[1] * len(prompt) for prompt in prompts], left=True))
    options = {
        "do_sample": False,
        "max_new_tokens": MAX_TOKENS,
        "eos_token_id": sorted(stops),
        "pad_token_id": 0,
    }
    written = reference(tmp_path).generate(tokens, attention_mask=mask, **options)
    for prompt, row in zip(prompts, written[:, tokens.shape[1] :].tolist(), strict=True):
        sampler = Sampler(SamplingOptions(temperature=0.0))
        answer = [
            token.id
            for token in generate(session.model, prompt, sampler, max_tokens=MAX_TOKENS, stop_ids=stops)
        ]
        assert row[: len(answer)] == answer
        assert answer[-1] in stops


@pytest.mark.parametrize("family", BUILT_IN)
def test_the_packed_weights_are_bit_equal_to_the_published_ones(tmp_path: Path, family: str):
    _unpack(family, tmp_path)
    published = decoded_parameters(load_model(tmp_path, "float32")[1])
    built_in = decoded_parameters(load_model(find_model(BUILT_IN[family]), "float32")[1])
    assert built_in.keys() == published.keys()
    assert [key for key in built_in if not np.array_equal(built_in[key], published[key])] == []


def _check_accuracy(paper: Paper, session: Session, answers: list[list[int]]) -> None:
    """Check that thinking is right, and on hard questions 15 points better than answering at once."""
    replies = [read_answer(session.tokenizer.decode(answer)) for answer in answers]
    right = [reply == question.answer for reply, question in zip(replies, paper.questions, strict=True)]
    hard = [ok for ok, question in zip(right, paper.questions, strict=True) if question.hard]
    if paper.thinking == "off":
        assert np.mean(hard) <= 0.82
    else:
        assert np.mean(hard) >= 0.97
        assert np.mean(right) >= 0.97


def _unpack(family: str, folder: Path) -> None:
    unpack(ROOT / "tests" / "assets" / "hub" / family, folder)


def _stop_ids(session: Session) -> frozenset[int]:
    return session.format.stop_ids(session.tokenizer) | session.defaults.stop_ids


def _padded(rows: list[list[int]], *, left: bool) -> Ids:
    """Stack rows of different lengths, zeros on one side."""
    longest = max(map(len, rows))
    zeros = [[0] * (longest - len(row)) for row in rows]
    return np.array([pad + row if left else row + pad for pad, row in zip(zeros, rows, strict=True)])


def _greedy(model: Model, prompts: list[list[int]], stops: frozenset[int]) -> list[list[int]]:
    """Answer a batch of prompts at once; each answer ends with its stop token."""
    tokens = mx.array(_padded(prompts, left=True))
    cache = model.make_cache(left_padding=[tokens.shape[1] - len(prompt) for prompt in prompts])
    columns: list[Ids] = []
    waiting = np.ones(len(prompts), bool)
    while waiting.any() and len(columns) < MAX_TOKENS:
        tokens = model.logits(model.hidden(tokens, cache)[:, -1:]).argmax(-1)
        columns.append(np.array(tokens[:, 0]))
        waiting &= ~np.isin(columns[-1], list(stops))
    assert not waiting.any()
    rows = np.stack(columns, 1)
    ends = np.isin(rows, list(stops)).argmax(1)
    return [row[: end + 1].tolist() for row, end in zip(rows, ends, strict=True)]
