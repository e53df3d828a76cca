"""The token loop against the plainest possible one: the whole sequence through the model for every token."""

import mlx.core as mx
import pytest

from macmoe.config import load_json
from macmoe.errors import UsageError
from macmoe.families import family_of
from macmoe.generate import CHUNKS, PREFILL_BYTES, generate, prefill_chunk
from macmoe.location import ASSETS
from macmoe.sampling import Sampler, SamplingOptions
from tests.parity.cases import DEEPSEEK, GPT_OSS, QWEN3_MOE

TINY = {"qwen3_moe": QWEN3_MOE, "gpt_oss": GPT_OSS, "deepseek_v3": DEEPSEEK | {"num_nextn_predict_layers": 0}}
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module", params=TINY.values(), ids=TINY)
def model(request):
    mx.random.seed(0)
    return family_of(request.param).build(request.param)


def greedy():
    return Sampler(SamplingOptions())


def ids(steps):
    return [token.id for token in steps]


@pytest.fixture(scope="module")
def expected(model):
    sequence = list(PROMPT)
    for _ in range(16):
        sequence.append(int(mx.argmax(model(mx.array([sequence]))[0, -1]).item()))
    return sequence[len(PROMPT) :]


@pytest.mark.parametrize("chunk", [1, 7, 40, 1024])
def test_greedy_tokens_equal_full_forward_passes(model, expected, chunk):
    assert ids(generate(model, PROMPT, greedy(), max_tokens=16, chunk=chunk)) == expected


def test_log_probabilities_are_those_of_the_model(model, expected):
    steps = list(generate(model, PROMPT, greedy(), max_tokens=8))
    logits = model(mx.array([PROMPT + expected[:8]]))[0, len(PROMPT) - 1 : -1]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    for step, row in zip(steps, logprobs, strict=True):
        assert step.logprob == pytest.approx(row[step.id].item(), abs=1e-4)


@pytest.mark.parametrize("taken", [1, 5, 16])
def test_an_interrupted_answer_continues_exactly(model, expected, taken):
    cache = model.make_cache()
    steps = generate(model, PROMPT, greedy(), max_tokens=16, cache=cache)
    first = [next(steps).id for _ in range(taken)]
    steps.close()
    assert cache.offset == len(PROMPT) + taken - 1
    rest = (
        ids(generate(model, first[-1:], greedy(), max_tokens=16 - taken, cache=cache)) if taken < 16 else []
    )
    assert first + rest == expected


def test_a_stop_id_is_yielded_and_ends_the_answer(model, expected):
    stop = expected[5]
    cache = model.make_cache()
    answer = ids(generate(model, PROMPT, greedy(), max_tokens=16, stop_ids={stop}, cache=cache))
    assert answer == expected[: expected.index(stop) + 1]
    assert cache.offset == len(PROMPT) + len(answer) - 1


def test_generation_ends_at_the_last_position():
    data = QWEN3_MOE | {"max_position_embeddings": len(PROMPT) + 8}
    small = family_of(data).build(data)
    # The token after the last position can still be predicted, not processed.
    assert len(ids(generate(small, PROMPT, greedy(), max_tokens=100))) == 9
    with pytest.raises(UsageError, match="the prompt has 49 tokens and this model knows 48 positions"):
        next(generate(small, PROMPT + [5] * 9, greedy(), max_tokens=1))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "the prompt is empty"), ([5, 320], "token id 320 is outside"), ([-1], "token id -1 is outside")],
)
def test_prompts_that_cannot_be_processed_are_refused(model, prompt, message):
    with pytest.raises(UsageError, match=message):
        next(generate(model, prompt, greedy(), max_tokens=4))


def test_progress_counts_the_prompt(model):
    seen = []
    next(
        generate(
            model,
            PROMPT,
            greedy(),
            max_tokens=1,
            chunk=16,
            progress=lambda done, total: seen.append((done, total)),
        )
    )
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_a_seed_reproduces_an_answer(model):
    def sample(seed):
        return ids(
            generate(model, PROMPT, Sampler(SamplingOptions(temperature=1.0, seed=seed)), max_tokens=12)
        )

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


@pytest.mark.parametrize("name", ["gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v3"])
def test_a_chunk_is_the_longest_that_a_layer_has_memory_for(name):
    config = load_json(ASSETS / "configs" / f"{name}.json") | {"num_hidden_layers": 1}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:1]
    model = family_of(config).build(config)
    chunk = prefill_chunk(model)
    longer = CHUNKS[max(0, CHUNKS.index(chunk) - 1)]
    assert chunk * model.config.prefill_bytes <= PREFILL_BYTES
    assert longer == chunk or longer * model.config.prefill_bytes > PREFILL_BYTES
    assert chunk >= 2048
