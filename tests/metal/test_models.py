"""Whole models with kernels: the tokens are those of the modules."""

from __future__ import annotations

from dataclasses import asdict, replace

import mlx.core as mx
import pytest

import macmoe
from macmoe.decoding import choice, comparisons, examination, launches
from macmoe.decoding.comparisons import in_float32, mixtures
from macmoe.decoding.examination import Check, Verdict, examine, with_past
from macmoe.decoding.launches import check_kernels
from macmoe.generate import generate
from macmoe.location import BUILT_IN
from macmoe.sampling import Sampler, SamplingOptions
from tests.metal import emulator
from tests.metal.test_faults import planted
from tests.metal.text import KernelError

PROMPT = "What is 347 + 586?"
TOKENS = 6


@pytest.fixture(autouse=True)
def short_check(request, monkeypatch):
    """Let the self-check compare and time few tokens, and no long cache unless a test is about it."""
    for module in (comparisons, examination):
        monkeypatch.setattr(module, "TOKENS", 2)
    if "long_cache" not in request.keywords:
        monkeypatch.setattr(comparisons, "LONG", 600)


def verdict_of(error, *, seconds, rows=1, failure=""):
    """Return a verdict on kernels, where the modules take two seconds."""
    check = Check(rows=rows, error=error, bound=1e-4, seconds=seconds, plain_seconds=2.0, failure=failure)
    return Verdict(checks={"sparse": check}, seconds=seconds, plain_seconds=2.0)


RIGHT, WRONG, SLOW = (verdict_of(error, seconds=seconds) for error, seconds in ((0, 1), (0.25, 1), (0, 3)))
WRONG_FOR_TWO = verdict_of(0.25, seconds=1.0, rows=2)


def as_mlx_refuses(compile_text):
    """Return what compiles a text and raises what MLX raises for a wrong one."""

    def compiled(*arguments):
        try:
            return compile_text(*arguments)
        except KernelError as error:
            raise RuntimeError(str(error)) from error

    return compiled


def greedy(session, count, bits):
    """Return the first greedy tokens of an answer."""
    segments = session.format.render([macmoe.Message("user", PROMPT)], thinking="on")
    prompt = session.tokenizer.encode_segments(segments)
    model, cache = session.model, session.model.make_cache(bits=bits)
    tokens = generate(model, prompt, Sampler(SamplingOptions()), max_tokens=count, cache=cache)
    return [token.id for token in tokens]


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", BUILT_IN)
def test_greedy_tokens_are_those_of_the_modules(session_with_step, monkeypatch, name, bits):
    session, step = session_with_step(name)
    monkeypatch.setenv("MACMOE_KERNELS", "0")
    plain = greedy(session, TOKENS, bits)
    monkeypatch.delenv("MACMOE_KERNELS")
    launched = []
    trace = step.trace
    step.run = lambda *arguments: launched.append(1) or trace(*arguments)
    session.model.translation = choice.Translation(choice.arrays_of(session.model), step, {bits: RIGHT})
    assert greedy(session, TOKENS, bits) == plain
    assert len(launched) == TOKENS - 1


@pytest.mark.long_cache
@pytest.mark.long
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", BUILT_IN)
def test_self_check_accepts_right_kernels_after_a_long_cache(session_with_step, name, bits):
    session, step = session_with_step(name)
    assert not examine(session.model, step, bits).wrong


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", BUILT_IN)
def test_self_check_accepts_right_kernels_and_refuses_wrong_ones(session_with_step, name, bits):
    session, step = session_with_step(name)
    verdict = examine(session.model, step, bits)
    assert not verdict.wrong
    assert len(verdict.checks) >= 3
    assert verdict.checks["head"].rows == verdict.checks["norm"].rows == 1
    assert mx.default_device() == mx.Device(mx.cpu)


@pytest.mark.parametrize(
    ("verdict", "used"),
    [
        (RIGHT, [True, True]),
        (WRONG, [False, False]),
        (WRONG_FOR_TWO, [True, False]),
        (SLOW, [False, False]),
        (verdict_of(float("nan"), seconds=1.0), [False, False]),
    ],
)
def test_kernels_are_used_where_they_are_right_and_faster(session_with_step, monkeypatch, verdict, used):
    session, _ = session_with_step("tiny:qwen3")
    model = session.model
    monkeypatch.setattr(choice, "remembered_verdict", lambda *_: verdict)
    steps = [choice.decode_step(model, model.make_cache([0] * sequences)) for sequences in (1, 2)]
    assert [step is not None for step in steps] == used
    assert [experts.use_kernels for experts in mixtures(model)] == [used[1]] * len(mixtures(model))


def test_a_kernel_that_does_not_compile_is_not_used_and_said(emulate, session_with_step, monkeypatch, caplog):
    session, _ = session_with_step("tiny:qwen3")
    emulate(change=planted("rsqrt(squares / DIM", "rsqrt(squares / DIN"))
    monkeypatch.setattr(emulator, "_entry", as_mlx_refuses(emulator._entry))
    monkeypatch.setattr(choice, "remembered_verdict", choice.examine)
    tokens = greedy(session, 3, None)
    assert session.model.translation.verdicts[None].wrong["norm"].failure.count("DIN") >= 1
    assert "kernels are not used for any token of this model" in caplog.text
    assert "DIN" in caplog.text
    monkeypatch.setenv("MACMOE_KERNELS", "0")
    assert greedy(session, 3, None) == tokens


def test_errors_at_the_end_of_a_layer_and_of_the_model_are_found(session_with_step, monkeypatch):
    session, step = session_with_step("tiny:deepseek-v3")
    head, add_norm = step.head, comparisons.add_norm
    step.head = lambda x: 1.001 * head(x)
    monkeypatch.setattr(comparisons, "add_norm", lambda *given: [1.001 * y for y in add_norm(*given)])
    wrong = examine(session.model, step).wrong
    assert set(wrong) == {"head", "head, 2 sequences", "norm", "norm, 2 sequences"}


def test_what_failed_for_a_moment_is_not_remembered(session_with_step, monkeypatch, tmp_path, caplog):
    session, step = session_with_step("tiny:qwen3")
    monkeypatch.setenv("MACMOE_CACHE", str(tmp_path))
    caplog.set_level("INFO", "macmoe")
    random_states = comparisons.random_states

    def no_memory(*_):
        raise RuntimeError("[malloc] Unable to allocate 1 bytes.")

    monkeypatch.setattr(comparisons, "random_states", no_memory)
    failed = choice.remembered_verdict(session.model, step)
    assert {kind: check.failure for kind, check in failed.wrong.items()} == {
        "attention, window None, long cache": "[malloc] Unable to allocate 1 bytes."
    }
    assert not failed.use(1)
    monkeypatch.setattr(comparisons, "random_states", random_states)
    verdict = choice.remembered_verdict(session.model, step)
    assert not verdict.wrong
    assert choice.remembered_verdict(session.model, step) == verdict
    assert caplog.messages == ["checking the kernels for this device and form of model, once"] * 2


def test_exchanged_weights_get_another_step(session_with_step, monkeypatch):
    session, _ = session_with_step("tiny:qwen3")
    model = session.model
    monkeypatch.setattr(choice, "remembered_verdict", lambda *_: RIGHT)
    matrix = model.model.layers[0].self_attn.v_proj
    steps = []
    for _ in range(4):  # freed arrays would give their addresses to the next ones
        for _ in range(2):
            matrix.weight = matrix.weight * 1
            mx.eval(matrix.weight)
        steps.append(choice.decode_step(model, model.make_cache([0])))
    assert len({id(step) for step in steps}) == len(steps)
    assert choice.decode_step(model, model.make_cache([0])) is steps[-1]


def test_an_error_that_only_many_tokens_of_an_expert_show_is_found(emulate, session_with_step):
    session, step = session_with_step("tiny:qwen3")
    emulate(change=planted("simd_sum(sums[0][n]);", "simd_sum(sums[0][n]) * (begin ? 1.1f : 1.0f);"))
    assert set(examine(session.model, step).wrong) == {"several tokens"}


def test_examination_finds_a_planted_error(session_with_step):
    session, step = session_with_step("tiny:qwen3")
    right = step.layers[0]

    def wrong(x, delta):
        x, y = right.feed_forward(x, delta)
        return x, 1.001 * y

    step.layers = (replace(right, feed_forward=wrong), *step.layers[1:])
    assert set(examine(session.model, step).wrong) == {"function", "function, 2 sequences"}


def test_a_module_in_float32_gets_its_numbers_back(session_with_step):
    session, _ = session_with_step("tiny:gpt-oss")
    model = session.model
    model.set_dtype(mx.bfloat16)
    before = [id(array) for array in choice.arrays_of(model)]
    with in_float32(model):
        assert model.model.norm.weight.dtype == mx.float32
    assert [id(array) for array in choice.arrays_of(model)] == before
    assert model.model.norm.weight.dtype == mx.bfloat16


def test_a_refusal_for_errors_is_said_and_one_for_time_is_not(caplog):
    choice._warn(WRONG)
    assert "not used for any token of this model" in caplog.text
    assert "sparse: error 2.5e-01" in caplog.text
    caplog.clear()
    choice._warn(WRONG_FOR_TWO)
    assert "not used for several tokens at once of this model" in caplog.text
    caplog.clear()
    choice._warn(SLOW)
    choice._warn(RIGHT)
    assert caplog.text == ""


@pytest.fixture
def few_launches(monkeypatch):
    """Time each kernel once: here its time says nothing."""
    monkeypatch.setattr(launches, "AT_ONCE", 1)
    monkeypatch.setattr(launches, "ROUNDS", 1)


@pytest.mark.usefixtures("few_launches")
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_kernel_of_a_token_is_counted_and_right(session_with_step, name, bits):
    session, step = session_with_step(name)
    found = check_kernels(step, with_past(session.model, bits))
    assert launches.KernelChecks.from_dict(asdict(found)) == found
    checks = found.checks
    assert all(check.right for check in checks)
    counts = {check.kernel.split()[0]: check.launches for check in checks}
    layers = len(step.layers)
    assert counts["add_norm"] + counts["add_norm_logits"] == 2 * layers
    assert counts["expert_sum"] == counts["route"] == counts["add_norm_logits"] <= layers
    assert ("latent_weights" in counts) == (name == "tiny:deepseek-v3")
    assert ("latent_unpack" in counts) == (name == "tiny:deepseek-v3" and bits == 8)


@pytest.mark.usefixtures("few_launches")
def test_a_kernel_that_is_wrong_alone_is_found_and_named(emulate, session_with_step):
    session, step = session_with_step("tiny:gpt-oss")
    emulate(change=planted("rsqrt(squares / DIM", "rsqrt(squares / (DIM + 1)"))
    wrong = [
        check.kernel for check in check_kernels(step, with_past(session.model)).checks if not check.right
    ]
    assert wrong == ["add_norm_logits [1, 128]", "add_norm [1, 128]"]


@pytest.mark.usefixtures("few_launches")
def test_only_matrices_of_chosen_experts_count_as_read(session_with_step):
    session, step = session_with_step("tiny:gpt-oss")
    checks = {
        check.kernel.split()[0]: check for check in check_kernels(step, with_past(session.model)).checks
    }
    mixture, top_k = session.model.model.layers[0].mlp, session.model.config.num_experts_per_tok
    down = mixture.experts.down_proj
    stored = sum(down[part].nbytes for part in ("weight", "scales") if part in down)
    assert checks["expert_sum"].matrix_bytes == stored * top_k // len(down.weight)
    assert checks["add_norm_logits"].matrix_bytes == mixture.router.weight.nbytes
    assert checks["add_norm"].bandwidth is None


def test_self_check_sees_how_a_cache_is_read(session_with_step):
    session, step = session_with_step("tiny:qwen3")
    right = step.layers[0]

    def wrong(x, buffers, places):
        if len(buffers) > 2:  # the offsets of the values are those of the keys
            buffers = [*buffers[:5], buffers[2]]
        return right.attention(x, buffers, places)

    wrong.output = right.attention.output
    step.layers = (replace(right, attention=wrong), *step.layers[1:])
    assert not examine(session.model, step).wrong
    kind = "attention, window None"
    assert set(examine(session.model, step, 8).wrong) == {
        kind,
        f"{kind}, 2 sequences",
        f"{kind}, long cache",
    }


@pytest.mark.long_cache
def test_an_error_that_only_a_long_cache_shows_is_found(emulate, session_with_step):
    session, step = session_with_step("tiny:deepseek-v3")
    emulate(change=planted("place < end; place +=", "place < end && place < 8192; place +="))
    assert set(examine(session.model, step).wrong) == {"attention, window None, long cache"}


def test_each_kind_of_cache_is_judged_once(session_with_step, monkeypatch):
    session, _ = session_with_step("tiny:qwen3")
    model, asked = session.model, []

    def verdict(model, step, bits):  # noqa: ARG001
        asked.append(bits)
        return RIGHT if bits else SLOW

    monkeypatch.setattr(choice, "remembered_verdict", verdict)
    steps = [choice.decode_step(model, model.make_cache(bits=bits)) for bits in (None, 8, None, 8)]
    assert asked == [None, 8]
    assert [step is not None for step in steps] == [False, True, False, True]
    assert all(experts.use_kernels for experts in mixtures(model))


@pytest.mark.parametrize("bits", [None, 8])
def test_copies_of_a_cache_do_not_see_what_kernels_write(session_with_step, bits):
    session, step = session_with_step("tiny:gpt-oss")
    model = session.model
    cache = model.make_cache(bits=bits)
    mx.eval(model.hidden(mx.arange(40)[None], cache))
    twin = cache.copy()
    before = [mx.array(array) for array in twin.state]
    mx.eval(step(mx.array([7]), cache), before)
    assert all(mx.array_equal(a, b) for a, b in zip(twin.state, before, strict=True))
    own = step(mx.array([9]), twin)
    wanted = model(mx.array([[*range(40), 9]]), model.make_cache(bits=bits))[0, -1:]
    assert mx.allclose(own, wanted, atol=1e-4 if bits is None else 2e-3)
    cache.trim(1)
    assert mx.allclose(step(mx.array([9]), cache), own, atol=1e-4)
