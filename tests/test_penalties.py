"""Penalties against transformers' processor and generate(), against OpenAI's formula, and in batches."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.answer import Answer, Limits
from macmoe.generate import generate
from macmoe.penalties import Penalties, PenaltyOptions
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.tuning.replies import generate_batch
from tests.tuning.tiny import build

VOCAB = 40
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=12)


def random_logits(seed, rows=1):
    return np.random.default_rng(seed).standard_normal((rows, VOCAB)).astype(np.float32) * 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), tokens.filter(len), tokens, st.floats(0.2, 3))
def test_the_repetition_penalty_is_that_of_transformers(seed, prompt, answer, penalty):
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = random_logits(seed)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + answer]), torch.tensor(logits))
    ours = Penalties(PenaltyOptions(repetition=penalty), [prompt], [answer], VOCAB).apply(mx.array(logits))
    np.testing.assert_allclose(np.array(ours), theirs.numpy(), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), tokens, tokens, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_the_answer_alone(seed, prompt, answer, presence, frequency):
    logits = random_logits(seed)
    counts = np.bincount(answer, minlength=VOCAB).astype(np.float32)
    expected = logits - counts * frequency - (counts > 0) * presence
    options = PenaltyOptions(presence=presence, frequency=frequency)
    ours = Penalties(options, [prompt], [answer], VOCAB).apply(mx.array(logits))
    np.testing.assert_allclose(np.array(ours), expected, atol=1e-5)


def test_every_sequence_has_a_state_of_its_own_that_grows():
    options = PenaltyOptions(repetition=1.3, presence=0.5, frequency=0.25)
    prompts, written = [[1, 2], [3]], [[5, 5, 1], [3, 0, 5]]
    state = Penalties(options, prompts, [(), ()], VOCAB)
    for step in range(3):
        state.advance(mx.array([row[step] for row in written]))
    logits = mx.array(random_logits(3, rows=2))
    alone = [
        Penalties(options, [prompts[row]], [written[row]], VOCAB).apply(logits[row : row + 1])
        for row in (0, 1)
    ]
    np.testing.assert_allclose(np.array(state.apply(logits)), np.concatenate(alone), atol=1e-6)


def test_log_probabilities_are_reported_as_the_model_gives_them():
    logits = mx.array(random_logits(4))
    sampler = Sampler(SamplingOptions(presence_penalty=100.0))
    sampler.begin([1], [int(mx.argmax(logits))])
    token, logprob = sampler(logits)
    assert token.item() != mx.argmax(logits).item()
    expected = logits[0, token.item()] - mx.logsumexp(logits)
    assert logprob.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.fixture(scope="module")
def model():
    return build("qwen3")


PROMPTS = [[5, 9, 9, 2], [7, 5]]


def alone(model, prompt, **options):
    sampler = Sampler(SamplingOptions(**options))
    return [token.id for token in generate(model, prompt, sampler, max_tokens=12)]


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.3}, {"presence_penalty": 1.5}, {"frequency_penalty": 0.7}]
)
def test_a_batch_is_penalized_as_each_of_its_sequences_alone(model, options):
    batch = generate_batch(
        model, PROMPTS, Sampler(SamplingOptions(**options)), max_tokens=12, stop_ids=frozenset()
    )
    assert batch == [alone(model, prompt, **options) for prompt in PROMPTS]
    assert batch != [alone(model, prompt) for prompt in PROMPTS]


def test_what_a_batch_writes_instead_of_the_chosen_token_counts(model):
    def rewrite(_, token):
        return 3 if token == first else token

    first = alone(model, PROMPTS[0])[0]
    sampler = Sampler(SamplingOptions(presence_penalty=1000.0))
    (written,) = generate_batch(
        model, PROMPTS[:1], sampler, max_tokens=4, stop_ids=frozenset(), rewrite=rewrite
    )
    assert written.count(3) == 1  # the penalty is on what was written, not on `first`
    assert written[0] == 3


class Thinking:
    """A parser for which all is thinking until CLOSING has come; remembers what it was fed."""

    def __init__(self):
        self.fed = []

    @property
    def thinking(self):
        return CLOSING[-1] not in self.fed

    answering = property(lambda self: not self.thinking)

    def feed(self, token):
        self.fed.append(token)
        return []

    def finish(self):
        return []


CLOSING = [4, VOCAB]  # the last is a token that no penalty would let the model choose


def test_penalties_go_on_where_the_thinking_is_closed(model):
    options = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.4}
    prompt, parser = PROMPTS[0], Thinking()
    answer = Answer(model, parser, Limits(tokens=9, thinking=4, stop_ids=frozenset()), CLOSING)
    list(answer.events(prompt, Sampler(SamplingOptions(**options))))
    assert parser.fed[4:6] == CLOSING
    logits = np.array(model(mx.array([prompt + parser.fed])))[0].astype(np.float64)
    for place in [*range(4), *range(6, len(parser.fed))]:
        scores, written = logits[len(prompt) + place - 1], parser.fed[:place]
        seen = sorted({*prompt, *written})
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * 1.2, scores[seen] / 1.2)
        counts = np.bincount(written, minlength=len(scores))
        scores = scores - 0.4 * counts - 0.5 * (counts > 0)
        assert scores.argmax() == parser.fed[place]


def test_transformers_generates_the_same_with_a_repetition_penalty(tmp_path):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from macmoe.session import load_model

    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    theirs = Qwen3ForCausalLM(config).eval()
    for parameter in theirs.parameters():
        parameter.data *= 4 if parameter.ndim > 1 else 1  # far enough from a tie
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, "float32")[1]
    prompt = [3, 1, 4, 1, 5]
    reference = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=1.4, pad_token_id=0
    )
    sampler = Sampler(SamplingOptions(repetition_penalty=1.4))
    written = [token.id for token in generate(ours, prompt, sampler, max_tokens=20)]
    assert written == reference[0, len(prompt) :].tolist()
