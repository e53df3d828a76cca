"""Answers of a scripted model: what is thinking and what answer, what is counted, how a budget works."""

import pytest

from macmoe.answer import Answer, Limits, PlainText, Stats
from macmoe.chat.events import AnswerText, ThinkingText
from macmoe.chat.messages import Message
from macmoe.errors import UsageError
from macmoe.sampling import Sampler, SamplingOptions
from tests.scripted import Config, ScriptedModel

THOUGHT = "the capital is Paris, I think; yes, the capital of France is Paris. "
REPLY = "The answer is Paris."


class Thinker(ScriptedModel):
    """Thinks THOUGHT, then replies; wherever its thinking is closed, it replies from there on."""

    def __init__(self, family, thinks=True):
        super().__init__(family)
        self.thinking = "on" if thinks else "off"
        answer = Message("assistant", REPLY, reasoning=THOUGHT if thinks else None)
        self.prompt, self.script = self.learn([Message("user", "Which?")], answer, thinking=self.thinking)

    def answer(self, budget=None, max_tokens=500, limits=None, closing=None):
        segments = self.chat.render([Message("user", "Which?")], thinking=self.thinking)
        parser = self.chat.parser(self.tokenizer, self.chat.start_of(segments))
        limits = limits or {"tokens": max_tokens, "thinking": budget}
        limits = Limits(stop_ids=self.chat.stop_ids(self.tokenizer), **limits)
        answer = Answer(self, parser, limits, self.closing if closing is None else closing)
        events = list(answer.events(self.prompt, Sampler(SamplingOptions())))
        thinking = "".join(event.text for event in events if isinstance(event, ThinkingText))
        reply = "".join(event.text for event in events if isinstance(event, AnswerText))
        return thinking, reply, events[-1]


@pytest.fixture(scope="module", params=["qwen3", "gpt_oss", "deepseek_v3"])
def model(request):
    return Thinker(request.param)


def test_thinking_and_answer_are_told_apart(model):
    thinking, reply, stats = model.answer()
    assert (thinking.strip(), reply) == (THOUGHT.strip(), REPLY)
    assert stats.stop_reason == "stop"
    assert not stats.thinking_cut
    assert stats.prompt_tokens == len(model.prompt)
    assert stats.generated_tokens == len(model.script)
    assert 0 <= stats.answer_tokens - len(model.tokenizer.encode(REPLY)) <= 2  # newlines after a tag


def test_the_thinking_is_counted_without_its_tags(model):
    _, _, stats = model.answer()
    text = model.tokenizer.encode(THOUGHT)
    assert abs(stats.thinking_tokens - len(text)) <= 2  # newlines next to a tag may join a token


@pytest.mark.parametrize("budget", [0, 1, 2, 8, 15])
def test_a_budget_is_exact(model, budget):
    thinking, reply, stats = model.answer(budget)
    assert stats.thinking_tokens == budget
    assert stats.thinking_cut
    assert reply == REPLY
    assert THOUGHT.startswith(thinking.partition("Considering")[0].strip("\n"))
    assert stats.stop_reason == "stop"


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_that_the_context_leaves_no_room_to_close_ends_the_answer(model, budget, monkeypatch):
    positions = len(model.prompt)
    for room in range(budget + len(model.closing) + 1):
        monkeypatch.setattr(model, "config", Config(model.config.vocab_size, positions + room))
        thinking, reply, stats = model.answer(budget)
        assert stats.stop_reason == "length"
        assert stats.generated_tokens <= room + 1
        assert THOUGHT.startswith(thinking.partition("Considering")[0].strip("\n"))
        assert stats.thinking_cut or not reply


def test_a_budget_changes_nothing_where_thinking_cannot_be_closed(model, monkeypatch):
    processed, hidden = [], model.hidden

    def watched(tokens, cache):
        processed.append(tokens)
        return hidden(tokens, cache)

    monkeypatch.setattr(model, "hidden", watched)
    free, passes = model.answer(), len(processed)
    thinking, reply, stats = model.answer(2, closing=[])
    assert (thinking, reply) == free[:2]
    assert not stats.thinking_cut
    assert len(processed) == 2 * passes


def test_a_budget_that_is_not_reached_changes_nothing(model):
    assert model.answer(10_000)[:2] == model.answer()[:2]
    assert not model.answer(10_000)[2].thinking_cut


@pytest.mark.parametrize("max_tokens", [1, 5, 9])
def test_the_limit_of_tokens_holds_with_and_without_a_budget(model, max_tokens):
    for budget in (None, 3):
        _, _, stats = model.answer(budget, max_tokens)
        assert stats.generated_tokens == max_tokens
        assert stats.stop_reason == "length"


def test_the_answer_has_a_limit_of_its_own(model):
    limits = {"tokens": 500, "answer": 4}
    thinking, reply, stats = model.answer(limits=limits)
    assert thinking.strip() == THOUGHT.strip()
    assert stats.answer_tokens == 4
    assert stats.stop_reason == "length"
    assert REPLY.startswith(reply)


def test_plain_text_is_all_answer():
    model = Thinker("qwen3", thinks=False)
    limits = Limits(tokens=500, stop_ids=model.chat.stop_ids(model.tokenizer))
    *events, stats = Answer(model, PlainText(model.tokenizer), limits).events(
        model.prompt, Sampler(SamplingOptions())
    )
    assert "".join(event.text for event in events) == model.tokenizer.decode(model.script)
    assert isinstance(stats, Stats)
    assert stats.thinking_tokens == 0


@pytest.mark.parametrize("limits", [{"tokens": 0}, {"tokens": 5, "thinking": -1}])
def test_limits_that_leave_nothing_are_refused(limits):
    with pytest.raises(UsageError, match="it has to be at least"):
        Limits(stop_ids=frozenset(), **limits)


@pytest.mark.parametrize("tokens", [40, None])
def test_thinking_is_closed_early_enough_that_an_answer_fits(model, tokens, monkeypatch):
    room = 40 + len(model.closing) if tokens is None else 4096
    monkeypatch.setattr(model, "config", Config(model.config.vocab_size, len(model.prompt) + room - 1))
    _, reply, stats = model.answer(limits={"tokens": tokens, "reserve": True})
    assert stats.thinking_cut
    assert 24 <= stats.thinking_tokens <= 30  # of 40 a quarter is left; tags and headers are no thinking
    assert reply


def test_what_is_short_is_not_closed(model):
    assert model.answer(limits={"tokens": None, "reserve": True})[:2] == model.answer()[:2]


def test_an_answer_that_thinking_left_no_room_for_names_the_options(model, caplog):
    thinking, reply, _ = model.answer(max_tokens=9)
    assert thinking
    assert not reply
    assert "the thinking took all 9 tokens; raise --max-tokens" in caplog.text
    assert "--thinking-budget" in caplog.text


def test_a_complete_or_a_begun_answer_is_nothing_to_warn_of(model, caplog):
    for limits in ({"tokens": 500}, {"tokens": 500, "answer": 1}):
        model.answer(limits=limits)
    assert not caplog.text


@pytest.mark.parametrize("stop", ["is", "answer is Par", "s.", "The", "."])
def test_a_stop_text_ends_the_answer_and_not_the_thinking(model, stop):
    thinking, reply, stats = model.answer(limits={"tokens": 500, "stop": (stop, "never")})
    assert thinking.strip() == THOUGHT.strip()
    assert reply == REPLY.partition(stop)[0]
    assert stats.stop_reason == "stop"


def test_a_stop_text_that_does_not_come_withholds_nothing(model):
    for stop in ("Paris. And", "xyz"):
        assert model.answer(limits={"tokens": 500, "stop": (stop,)})[:2] == model.answer()[:2]
