"""Reuse across turns: only what is new is processed, and the answers are those of a fresh start."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.errors import CheckpointError, UsageError
from macmoe.families import family_of
from macmoe.generate import generate, prefill
from macmoe.prompt_cache import PromptCache, fingerprint
from macmoe.sampling import Sampler, SamplingOptions
from tests.parity.cases import DEEPSEEK, GPT_OSS, QWEN3_MOE

TINY = {"qwen3_moe": QWEN3_MOE, "gpt_oss": GPT_OSS, "deepseek_v3": DEEPSEEK | {"num_nextn_predict_layers": 0}}


def build(data, seed=0):
    mx.random.seed(seed)
    return family_of(data).build(data)


@pytest.fixture(scope="module", params=TINY.values(), ids=TINY)
def model(request):
    return build(request.param)


def ids(count, seed):
    return np.random.default_rng(seed).integers(3, 320, count).tolist()


def first_tokens(model, held, prompt, count=4):
    """Answer a prompt with a few tokens, as an answer does, and return them."""
    pending = held.resume(prompt)
    steps = generate(model, pending, Sampler(SamplingOptions()), max_tokens=count, cache=held.cache)
    written = [next(steps).id]
    held.mark(len(prompt))
    written += [step.id for step in steps]
    held.processed([*pending, *written[:-1]])
    return written


def go_on(model, held, tokens):
    """Let the model write these tokens."""
    mx.eval(model.hidden(mx.array([tokens]), held.cache))
    held.processed(tokens)


@pytest.mark.parametrize("thinking", [30, 700], ids=["within the slack", "beyond the slack"])
def test_a_turn_processes_only_what_is_new(model, thinking):
    """Each history drops the reasoning, with which the answer began, and keeps the rest of it."""
    held = PromptCache(model)
    prompt = ids(40, 0)
    for turn in range(1, 5):
        written = first_tokens(model, held, prompt)
        fresh = generate(model, prompt, Sampler(SamplingOptions()), max_tokens=4)
        assert written == [step.id for step in fresh]
        go_on(model, held, ids(thinking, 10 + turn))
        following = [*prompt, *ids(22, 20 + turn)]
        assert len(held.resume(following)) == 22
        prompt = following


def test_the_logits_after_reuse_are_those_of_a_fresh_start(model):
    held = PromptCache(model)
    prompt = ids(50, 1)
    first_tokens(model, held, prompt)
    following = [*prompt, *ids(30, 2)]
    reused = prefill(model, mx.array([held.resume(following)]), held.cache)
    fresh = prefill(model, mx.array([following]), model.make_cache())
    np.testing.assert_allclose(np.array(reused), np.array(fresh), atol=5e-5)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 80), st.integers(1, 40)), min_size=1, max_size=5))
def test_any_sequence_of_prompts_gives_the_tokens_of_a_fresh_start(turns):
    model = build(GPT_OSS)
    held = PromptCache(model)
    for turn, (shared, new) in enumerate(turns):
        prompt = [*held.tokens[:shared], *ids(new, turn)]
        written = first_tokens(model, held, prompt)
        fresh = generate(model, prompt, Sampler(SamplingOptions()), max_tokens=4)
        assert written == [step.id for step in fresh]


def test_the_same_prompt_again_processes_its_last_token(model):
    held = PromptCache(model)
    first_tokens(model, held, ids(30, 3))
    assert held.resume(ids(30, 3)) == ids(30, 3)[-1:]


@pytest.mark.parametrize("thinking", [20, 700])
def test_a_saved_cache_continues_exactly(model, thinking, tmp_path):
    held = PromptCache(model)
    prompt = ids(60, 4)
    first_tokens(model, held, prompt)
    go_on(model, held, ids(thinking, 9))
    held.save(tmp_path / "chat.cache")
    loaded = PromptCache.load(tmp_path / "chat.cache", model)
    following = [*prompt, *ids(10, 5)]
    assert first_tokens(model, loaded, following) == first_tokens(model, held, following)
    assert loaded.tokens == held.tokens
    assert [path.name for path in tmp_path.iterdir()] == ["chat.cache"]


@pytest.mark.parametrize("packable", [QWEN3_MOE, GPT_OSS, DEEPSEEK | {"qk_rope_head_dim": 32}])
def test_a_packed_cache_is_reused_and_saved_like_a_full_one(packable, tmp_path):
    model = build(packable)
    held = PromptCache(model, bits=8)
    prompt = ids(40, 0)
    first_tokens(model, held, prompt)
    go_on(model, held, ids(700, 1))  # beyond the slack of sliding layers
    held.save(tmp_path / "chat.cache")
    loaded = PromptCache.load(tmp_path / "chat.cache", model, bits=8)
    assert loaded.cache.bits == 8
    following = [*prompt, *ids(22, 2)]
    fresh = generate(
        model, following, Sampler(SamplingOptions()), max_tokens=4, cache=model.make_cache(bits=8)
    )
    wanted = [step.id for step in fresh]
    for cache in (held, loaded):
        assert len(cache.resume(following)) == 22
        assert first_tokens(model, cache, following) == wanted
    held.forget()
    assert held.cache.bits == 8


@pytest.mark.parametrize("bits", [None, 8])
def test_a_cache_in_other_bits_is_refused(bits, tmp_path):
    model, other = build(QWEN3_MOE), {None: 8, 8: None}[bits]
    held = PromptCache(model, bits)
    first_tokens(model, held, ids(10, 6))
    path = tmp_path / "chat.cache"
    held.save(path)
    words = {None: "full precision", 8: "8 bits"}
    with pytest.raises(
        UsageError, match=rf"chat\.cache.* in {words[bits]}, not in {words[other]}; ask for the same"
    ):
        PromptCache.load(path, model, other)


def test_a_cache_of_other_weights_or_another_precision_is_refused(tmp_path):
    model = build(QWEN3_MOE)
    held = PromptCache(model)
    first_tokens(model, held, ids(10, 6))
    path = tmp_path / "chat.cache"
    held.save(path)
    with pytest.raises(CheckpointError, match="made by another model or precision"):
        PromptCache.load(path, build(QWEN3_MOE, seed=1))
    model.set_dtype(mx.float16)
    with pytest.raises(CheckpointError, match="made by another model or precision"):
        PromptCache.load(path, model)


def test_a_cache_of_another_version_is_refused(tmp_path, monkeypatch):
    model = build(QWEN3_MOE)
    held = PromptCache(model)
    first_tokens(model, held, ids(10, 7))
    held.save(tmp_path / "chat.cache")
    monkeypatch.setattr("macmoe.prompt_cache.__version__", "99.0")
    with pytest.raises(CheckpointError, match="made by another version of macmoe"):
        PromptCache.load(tmp_path / "chat.cache", model)


@pytest.mark.parametrize("damage", ["truncated", "other", "empty"])
def test_a_file_that_is_no_cache_is_one_line(tmp_path, damage):
    model = build(QWEN3_MOE)
    path = tmp_path / "chat.cache"
    if damage == "other":
        mx.save_safetensors(str(tmp_path / "other.safetensors"), {"a": mx.zeros(3)})
        (tmp_path / "other.safetensors").rename(path)
    else:
        held = PromptCache(model)
        first_tokens(model, held, ids(10, 8))
        held.save(path)
        path.write_bytes(path.read_bytes()[: -100 if damage == "truncated" else 0])
    with pytest.raises(CheckpointError, match=r"chat\.cache: not a prompt cache") as caught:
        PromptCache.load(path, model)
    assert "download" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    held = PromptCache(build(QWEN3_MOE))
    with pytest.raises(CheckpointError, match=r"chat\.cache: the prompt cache cannot be written"):
        held.save(tmp_path / "nowhere" / "chat.cache")


def test_one_changed_weight_changes_the_fingerprint():
    one, other = build(QWEN3_MOE), build(QWEN3_MOE)
    assert fingerprint(one) == fingerprint(other)
    other.model.norm.weight = other.model.norm.weight * 1.5
    assert fingerprint(one) != fingerprint(other)
