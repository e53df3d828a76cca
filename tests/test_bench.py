"""What `macmoe bench` measures with: drawn weights, the peer on the same ones, bytes, and cases that fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from macmoe.bench.counting import Kernels
from macmoe.bench.measure import (
    Plan,
    batch_case,
    decode_case,
    prefill_case,
    random_prompt,
    verify_case,
)
from macmoe.bench.peer import peer_model
from macmoe.bench.run import Subject, Work, run
from macmoe.bench.sides import Ours, Passes, Peer
from macmoe.bench.traffic import token_bytes, weight_bytes
from macmoe.bench.weights import MXFP4, drawn_bytes, in_pieces, packings, random_model, shortened
from macmoe.config import load_json
from macmoe.errors import UsageError
from macmoe.families import family_of
from macmoe.generate import following_logits
from macmoe.inspection import describe
from macmoe.location import ASSETS, BUILT_IN
from macmoe_converters.targets import hub_spelling

FAMILIES = tuple(BUILT_IN.values())
TOKENS = [[5, 9, 100, 7, 33]]


def tiny(family, **changes):
    """Return the configuration of a built-in model, as the hub spells it, without further layers."""
    return shortened(hub_spelling(load_json(ASSETS / family / "config.json")) | changes, None)


def drawn(family, **changes):
    config = tiny(family, **changes)
    return random_model(config, mx.float32), config


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_weights_keep_the_size_of_what_they_multiply(family):
    model, _ = drawn(family)
    for path, packed in packings(model).items():
        module = dict(model.named_modules())[path]
        how = packed.how
        wide = mx.dequantize(
            module["weight"],
            module["scales"],
            module.get("biases"),
            group_size=how.group_size,
            bits=how.bits,
            mode=how.mode,
            dtype=mx.float32,
        )
        assert wide.shape[-1] == packed.inputs
        size = float(mx.sqrt((wide**2).mean() * packed.inputs).item())
        assert 0.5 < size < 2, path
    logits = model(mx.array(TOKENS))
    assert mx.isfinite(logits).all()
    assert 0.2 < float(logits.std().item()) < 5


def test_experts_of_gpt_oss_are_mxfp4_and_nothing_else_is_packed():
    model, _ = drawn("gpt_oss")
    packed = packings(model)
    assert {path.rpartition(".")[2] for path in packed} == {"gate_up_proj", "down_proj"}
    assert {each.how for each in packed.values()} == {MXFP4}


def test_routers_are_never_packed():
    for family in ("qwen3", "deepseek_v3"):
        model, _ = drawn(family)
        assert not [path for path in packings(model) if path.endswith(".mlp.gate")]
        assert "lm_head" in packings(model)


def test_the_same_seed_draws_the_same_weights():
    config = tiny("qwen3")
    one, other = (tree_flatten(random_model(config, seed=3).parameters()) for _ in range(2))
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_are_known_before_weights_are_drawn(family):
    config = tiny(family)
    assert drawn_bytes(config) == pytest.approx(weight_bytes(random_model(config)), rel=0.001)


def test_numbers_are_drawn_piece_by_piece(monkeypatch):
    computed, evaluate = [], mx.eval
    monkeypatch.setattr("macmoe.bench.weights.PIECE", 1000)
    monkeypatch.setattr(mx, "eval", lambda array: evaluate(array) or computed.append(array.size))
    drawn = in_pieces((25, 100), mx.random.key(3), lambda count, key: mx.random.normal((count,), key=key))
    assert (computed, drawn.shape) == ([1000, 1000, 500], (25, 100))
    assert len(set(drawn.flatten().tolist())) > 2400


def test_a_shortened_configuration_has_the_first_layers_only():
    config = load_json(ASSETS / "configs" / "gpt-oss-20b.json")
    cut = shortened(config, 3)
    assert (cut["num_hidden_layers"], len(cut["layer_types"])) == (3, 3)
    with pytest.raises(UsageError, match="24 layers; it cannot be measured with 25"):
        shortened(config, 25)


# mlx-lm rounds the bounds of YaRN always, so GPT-OSS is compared with a configuration that asks for that.
ROUNDED = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "rope_type": "yarn",
    "truncate": True,
}


def comparable(family):
    """Return the configuration of a built-in model which mlx-lm computes in the same way."""
    return tiny(family, **({"rope_scaling": ROUNDED} if family == "gpt_oss" else {}))


def both_sides(family):
    """Return macmoe and mlx-lm on the same weights in float32, none of them packed."""
    mx.random.seed(0)
    config = comparable(family)
    model = family_of(config).build(config)
    return {"macmoe": Ours(model), "mlx-lm": Peer(peer_model(model, config), model)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_the_peer_computes_the_same_from_the_same_arrays(family, packed):
    config = comparable(family)
    model = random_model(config, mx.float32) if packed else family_of(config).build(config)
    if family == "deepseek_v3" and packed:  # the one matrix that has to be packed again
        for layer in model.model.layers:
            layer.self_attn.k_up_proj.scales *= 0
            layer.self_attn.k_up_proj.biases *= 0
    tokens = mx.array(TOKENS)
    mine, theirs = model(tokens), peer_model(model, config)(tokens)
    assert mx.allclose(mine, theirs, rtol=1e-3, atol=1e-3)


def test_only_experts_are_held_twice():
    model, config = drawn("qwen3")
    shared = {name: array for name, array in tree_flatten(model.parameters()) if ".experts." not in name}
    held = mx.get_active_memory()
    peer = peer_model(model, config)
    doubled = sum(a.nbytes for name, a in tree_flatten(model.parameters()) if ".gate_up_proj." in name)
    assert Peer(peer, model).weight_bytes == weight_bytes(model)
    assert mx.get_active_memory() - held < doubled + 0.2 * sum(array.nbytes for array in shared.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_reads_the_active_parameters_and_one_row_of_the_embedding(family):
    config = tiny(family)
    model = family_of(config).build(config)
    active = describe(family, config).parameters.active
    assert token_bytes(model, 0) == 4 * (active + config["hidden_size"])


def test_a_token_reads_no_more_of_a_sliding_layer_than_its_window():
    model, config = drawn("gpt_oss")
    window = config["sliding_window"]
    per_token = 2 * config["num_key_value_heads"] * config["head_dim"] * 4
    layers = len(config["layer_types"])
    assert token_bytes(model, window) - token_bytes(model, 0) == layers * window * per_token
    assert token_bytes(model, 2 * window) - token_bytes(model, window) == layers // 2 * window * per_token


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_decode_after_caches_of_the_same_content(family):
    model, config = drawn(family)
    for side in (Ours(model), Peer(peer_model(model, config), model)):
        tokens = list(side.decode(40, 3))
        assert len(tokens) == 3
        assert all(0 <= token < config["vocab_size"] for token in tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_write_the_same_after_a_filled_cache(family):
    ours, theirs = both_sides(family).values()
    assert list(ours.decode(40, 12)) == list(theirs.decode(40, 12))


@pytest.mark.usefixtures("short_bench")
@pytest.mark.parametrize(
    ("measure", "kind"), [(verify_case, "verify"), (batch_case, "batch")], ids=["verify", "batch"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_choose_alike_at_every_place_of_a_pass(family, measure, kind):
    sides = both_sides(family)
    plan = Plan(passes=3, rounds=2)
    vocab = sides["macmoe"].model.config.vocab_size
    case = measure(sides, vocab, 150, 5, plan)  # longer than a sliding window
    assert (case.kind, case.size, case.context) == (kind, 5, 150)
    assert case.same_tokens == 5 * (2 + plan.passes)
    assert {name: (times.tokens, len(times.seconds)) for name, times in case.sides.items()} == {
        "macmoe": (15, 2),
        "mlx-lm": (15, 2),
    }


def test_a_draft_is_answered_as_its_tokens_one_by_one():
    model, config = drawn("qwen3")
    ids = random_prompt(config["vocab_size"], 6)
    (together,) = Ours(model).passes(40, [[ids]])
    assert together == [chosen for (chosen,) in Ours(model).passes(40, [[[token]] for token in ids])]


@pytest.mark.parametrize("passes", [[[[1, 2]]], [[[1], [2], [3]]]], ids=["verify", "batch"])
@pytest.mark.parametrize("bits", [None, 8])
def test_kernels_are_decided_on_before_the_first_pass(monkeypatch, bits, passes):
    model, _ = drawn("qwen3")
    seen: list[tuple[int, int, int | None]] = []

    def following(model, cache):
        seen.append((cache.sequences, cache.offset, cache.bits))
        return following_logits(model, cache)

    monkeypatch.setattr("macmoe.bench.sides.following_logits", following)
    next(Ours(model, bits).passes(40, passes))
    assert seen == [(len(passes[0]), 40, bits)]


@dataclass
class Fake:
    """A side that writes what it is told to, or fails."""

    ids: Sequence[int] = (1, 2, 3)
    failure: Exception | None = None
    weight_bytes: int = 10

    def decode(self, context: int, tokens: int) -> Iterator[int]:  # noqa: ARG002
        if self.failure:
            raise self.failure
        return iter([*self.ids, *[0] * tokens][:tokens])

    def first_token(self, prompt: Sequence[int]) -> int:  # noqa: ARG002
        if self.failure:
            raise self.failure
        return self.ids[0]

    def passes(self, context: int, passes: Passes) -> Iterator[list[int]]:  # noqa: ARG002
        if self.failure:
            raise self.failure
        return (list(self.ids) for _ in passes)

    def cache_bytes(self, context: int) -> int:
        return context

    def kernels(self) -> Kernels:
        return Kernels(token=1, layer=1.0)


@pytest.mark.usefixtures("short_bench")
def test_a_side_that_fails_is_reported_and_the_other_one_measured():
    sides = {"macmoe": Fake(), "mlx-lm": Fake(failure=MemoryError("no room\nleft"))}
    plan = Plan(rounds=2)
    for case in (
        decode_case(sides, 8, plan),
        prefill_case(sides, [1, 2], plan),
        verify_case(sides, 9, 8, 3, plan),
        batch_case(sides, 9, 8, 3, plan),
    ):
        assert len(case.sides["macmoe"].seconds) == 2
        assert case.sides["mlx-lm"].failure == "MemoryError: no room left"
        assert case.ratio("macmoe", "mlx-lm") is None
        figures = case.to_json()["sides"]["mlx-lm"]
        assert (figures["not_measured"], figures["tokens_per_second"]["median"]) == (
            "MemoryError: no room left",
            None,
        )


def test_a_case_without_time_is_reported_as_not_measured():
    case = decode_case({"macmoe": Fake()}, 8, Plan(time_limit=1e-9))
    assert (case.sides["macmoe"].rate, case.sides["macmoe"].failure[:14]) == (None, "the time limit")


@pytest.mark.usefixtures("short_bench")
def test_tokens_are_alike_until_the_first_difference():
    case = decode_case({"a": Fake(ids=(1, 2, 3, 4)), "b": Fake(ids=(1, 2, 9, 4))}, 8, Plan(rounds=1))
    assert case.same_tokens == 2


@pytest.mark.usefixtures("short_bench")
def test_a_report_has_every_case_asked_for():
    model, config = drawn("qwen3")
    subject = Subject(name="tiny", model=model, config=config)
    work = Work(
        contexts=(8, 16), prompts=(4,), drafts=(3,), batches=(2,), plan=Plan(tokens=2, passes=2, rounds=1)
    )
    seen: list[int] = []
    report = run(
        subject, subject.sides(against_peer=True), work, done=lambda report: seen.append(len(report.cases))
    )
    assert seen == [1, 2, 3, 4, 5]
    assert work.cases == 5
    figures = report.to_json()
    assert [(case["kind"], case["size"], case["context"]) for case in figures["cases"]] == [
        ("decode", 8, 8),
        ("decode", 16, 16),
        ("prefill", 4, 0),
        ("verify", 3, 8),
        ("batch", 2, 8),
    ]
    decode = figures["cases"][0]
    assert decode["limit_rate"] == pytest.approx(
        figures["bandwidth_bytes_per_second"] / decode["token_bytes"]
    )
    assert set(decode["share_of_limit"]) == {"macmoe", "mlx-lm"}
    for side in decode["sides"].values():
        assert side["peak_bytes"] > report.weight_bytes


def test_verifying_alone_follows_the_usual_context_and_brings_no_other_case():
    plan = Plan()
    assert Work.asked(drafts=(2, 8), plan=plan) == Work(drafts=(2, 8), plan=plan)
    assert Work(drafts=(2,)).after == 512
    assert Work.asked(plan=plan) == Work(contexts=(512,), prompts=(2_048,), plan=plan)
