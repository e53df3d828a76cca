"""`macmoe doctor`: the machine on a CPU, and what it says of kernels where there is a GPU."""

from __future__ import annotations

import gc
import json
import math
import weakref
from dataclasses import replace

import mlx.core as mx
import pytest

from macmoe.bench import machine
from macmoe.cli import doctor
from macmoe.config import load_json
from macmoe.decoding import choice
from macmoe.decoding.examination import Check, Verdict
from macmoe.decoding.launches import KernelCheck, KernelChecks
from macmoe.location import ASSETS
from tests.recorded import record_launches

MODELS = ("tiny:gpt-oss", "tiny:qwen3", "tiny:deepseek-v3")


def check(error, rows=1, failure=""):
    return Check(rows=rows, error=error, bound=5e-2, seconds=1e-3, plain_seconds=3e-3, failure=failure)


KERNELS = (
    KernelCheck(kernel="add_norm [1, 64]", launches=4, error=2e-3, bound=1e-2, seconds=5e-5, matrix_bytes=0),
    KernelCheck(
        kernel="expert_sum [1, 64]", launches=2, error=1e-3, bound=1e-2, seconds=1e-4, matrix_bytes=50_000_000
    ),
)


RIGHT = {"attention": check(1e-3), "sparse": check(2e-3)}
GOOD = Verdict(checks=RIGHT, seconds=1e-3, plain_seconds=3e-3)
WRONG = replace(GOOD, checks=RIGHT | {"sparse": check(2e-1)})
WRONG_FOR_TWO = replace(GOOD, checks=RIGHT | {"sparse, 2 sequences": check(2e-1, rows=2)})
FAILED = replace(GOOD, checks={"sparse": check(math.inf, failure="no such type")}, seconds=math.inf)
WRONG_KERNELS = (KERNELS[0], replace(KERNELS[1], error=math.inf))
SLOW = replace(GOOD, seconds=4e-3)


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """Return a function that lets a check find a verdict, as on a machine with a GPU."""
    monkeypatch.setenv("MACMOE_CACHE", str(tmp_path))

    def finds(verdict, kernels=KERNELS):
        record_launches(monkeypatch)
        monkeypatch.setattr(machine, "check_kernels", lambda *_: KernelChecks(checks=kernels))
        asked = []
        monkeypatch.setattr(
            machine, "remembered_verdict", lambda *_, fresh: (asked.append(fresh), verdict)[1]
        )
        return asked

    return finds


def test_a_machine_without_a_gpu_uses_plain_operations(macmoe):
    result = macmoe("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert f"mlx {mx.__version__}" in rows["packages"]
    assert result.stdout.splitlines()[-1].split(maxsplit=1) == [
        "kernels",
        "kernels need a GPU; plain operations are used",
    ]


def test_json_has_the_same(macmoe):
    figures = json.loads(macmoe("doctor", "--json").stdout)
    assert figures["versions"]["mlx"] == mx.__version__
    assert figures["kernels"] == {"off": "kernels need a GPU; plain operations are used", "models": []}


def test_each_kind_of_layer_and_each_kernel_of_each_built_in_model_gets_a_line(macmoe, on_gpu):
    asked = on_gpu(GOOD)
    lines = macmoe("doctor").stdout.splitlines()[-15:]
    for model, rows in zip(MODELS, (lines[:5], lines[5:10], lines[10:]), strict=True):
        assert [row.split("  ")[0] for row in rows] == [
            f"{model}, {what}"
            for what in ("attention", "sparse", "add_norm [1, 64]", "expert_sum [1, 64]", "one token")
        ]
        assert rows[0].endswith(
            "ok (relative error 1.0e-03, allowed 5.0e-02): 1.00 ms with kernels, 3.00 ms without"
        )
        assert rows[2].endswith("ok (relative error 2.0e-03, allowed 1.0e-02): 4 x 50.0 us, 20% of a token")
        assert rows[3].endswith(": 2 x 100.0 us, 20% of a token, 500 GB/s of matrices")
        assert rows[4].endswith("ok, used: 1.00 ms with kernels, 3.00 ms without")
    assert asked == [False] * 3


@pytest.mark.parametrize(("verdict", "outcome"), [(WRONG, "wrong"), (SLOW, "slower")])
def test_kernels_that_are_wrong_or_slower_are_not_used(macmoe, on_gpu, verdict, outcome):
    on_gpu(verdict)
    lines = macmoe("doctor", "--model", "tiny:qwen3").stdout.splitlines()
    assert f"{outcome}, not used: " in lines[-1]
    assert any("wrong (relative error" in line for line in lines[:-1]) == (outcome == "wrong")
    (model,) = json.loads(macmoe("doctor", "--model", "tiny:qwen3", "--json").stdout)["kernels"]["models"]
    assert (model["model"], model["outcome"], model["used"]) == ("tiny:qwen3", outcome, False)
    assert [each["launches"] for each in model["kernels"]] == [4, 2]


def test_kernels_that_are_wrong_for_several_tokens_are_used_for_one(macmoe, on_gpu):
    on_gpu(WRONG_FOR_TWO)
    lines = macmoe("doctor", "--model", "tiny:qwen3").stdout.splitlines()
    assert "wrong, used for one token at a time: " in lines[-1]
    (model,) = json.loads(macmoe("doctor", "--model", "tiny:qwen3", "--json").stdout)["kernels"]["models"]
    assert (model["used"], model["used_for_several"]) == (True, False)


def test_a_kernel_that_does_not_run_is_said_and_none_is_timed(macmoe, on_gpu):
    on_gpu(FAILED)
    lines = macmoe("doctor", "--model", "tiny:qwen3").stdout.splitlines()
    assert lines[-2].endswith("  wrong, does not run: no such type")
    assert lines[-1].endswith("  wrong, not used")
    printed = macmoe("doctor", "--model", "tiny:qwen3", "--json").stdout
    (model,) = json.loads(printed, parse_constant=pytest.fail)["kernels"]["models"]
    assert (model["checks"]["sparse"]["error"], model["seconds"], model["kernels"]) == (None, None, [])


def test_a_kernel_that_is_wrong_by_itself_is_marked(macmoe, on_gpu):
    on_gpu(GOOD, WRONG_KERNELS)
    lines = macmoe("doctor", "--model", "tiny:qwen3").stdout.splitlines()
    marked = [line.split("  ")[0] for line in lines if "wrong (relative error inf" in line]
    assert marked == ["tiny:qwen3, expert_sum [1, 64]"]
    assert "ok, used: " in lines[-1]


def test_a_model_without_kernels_says_so(macmoe, on_gpu, monkeypatch):
    on_gpu(GOOD)
    monkeypatch.setattr(machine.DecodeStep, "of", lambda _: None)
    line = macmoe("doctor", "--model", "tiny:qwen3").stdout.splitlines()[-1]
    assert line.split(maxsplit=1) == ["tiny:qwen3", "no kernels for its form; plain operations are used"]


def test_published_shapes_are_checked_with_random_weights(macmoe, on_gpu, monkeypatch):
    on_gpu(GOOD)
    small = load_json(ASSETS / "qwen3" / "config.json")
    monkeypatch.setattr(doctor, "find_config", lambda name: ({"a-shape": small}[name], 1000))
    found = []
    check = doctor.check
    monkeypatch.setattr(
        doctor, "check", lambda name, model, **how: (found.append(model), check(name, model, **how))[1]
    )
    lines = macmoe("doctor", "--shape", "a-shape", "--layers", "2").stdout.splitlines()
    assert lines[-1].startswith("a-shape, one token ")
    assert not any("tiny:" in line for line in lines)
    (model,) = found
    assert (len(model.model.layers), model.config.hidden_size) == (2, small["hidden_size"])


def test_layers_without_a_shape_and_unknown_shapes_are_refused(macmoe, on_gpu):
    on_gpu(GOOD)
    result = macmoe("doctor", "--layers", "2")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        "Error: --layers shortens what --shape names; give a --shape too.",
    )
    result = macmoe("doctor", "--shape", "gpt-oss-20")
    assert result.exit_code == 1
    assert "gpt-oss-20b" in result.stderr


def test_shapes_are_looked_up_where_nothing_is_checked(macmoe):
    result = macmoe("doctor", "--shape", "gpt-oss-20b", "--layers", "25")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: this model has 24 layers; it cannot be measured with 25\n"


def test_what_is_asked_for_and_not_checked_is_said(macmoe):
    lines = macmoe("doctor", "--model", "tiny:qwen3", "--shape", "gpt-oss-20b").stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines[-2:]] == [
        ["tiny:qwen3", "not checked"],
        ["gpt-oss-20b", "not checked"],
    ]
    assert macmoe("doctor", "--model", "nowhere/nothing").exit_code == 1


def test_a_shape_beyond_the_memory_is_refused(macmoe, on_gpu, monkeypatch):
    on_gpu(GOOD)
    monkeypatch.setattr("macmoe.cli.shapes.memory_limit", lambda: 24 * 2**30)
    result = macmoe("doctor", "--shape", "deepseek-v3")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith("do not fit into 24.00 GiB of memory; take --layers 6\n")


def test_one_model_is_held_at_a_time(macmoe, on_gpu, monkeypatch):
    on_gpu(GOOD)
    alive, drawn_before = [], []
    draw = doctor.random_model

    def drawn(config):
        gc.collect()
        alive.append(sum(model() is not None for model in drawn_before))
        model = draw(config)
        drawn_before.append(weakref.ref(model))
        return model

    small = load_json(ASSETS / "qwen3" / "config.json")
    monkeypatch.setattr(doctor, "find_config", lambda _: (small, 1000))
    monkeypatch.setattr(doctor, "random_model", drawn)
    macmoe("doctor", "--shape", "a", "--shape", "b", "--shape", "c")
    assert alive == [0, 0, 0]


def test_what_each_kernel_took_is_remembered_until_a_fresh_check(macmoe, on_gpu):
    on_gpu(GOOD)
    first = macmoe("doctor", "--model", "tiny:qwen3").stdout
    on_gpu(GOOD, WRONG_KERNELS)
    assert macmoe("doctor", "--model", "tiny:qwen3").stdout == first
    assert "relative error inf" in macmoe("doctor", "--model", "tiny:qwen3", "--fresh").stdout
    on_gpu(GOOD)
    assert "relative error inf" in macmoe("doctor", "--model", "tiny:qwen3").stdout


def test_fresh_asks_for_another_check(macmoe, on_gpu):
    asked = on_gpu(GOOD)
    macmoe("doctor", "--model", "tiny:qwen3", "--fresh")
    assert asked == [True]


def test_turned_off_kernels_are_not_checked(macmoe, on_gpu, monkeypatch):
    monkeypatch.delenv("MACMOE_KERNELS", raising=False)
    asked = on_gpu(GOOD)
    line = macmoe("doctor", "--no-kernels").stdout.splitlines()[-1]
    assert line.endswith("turned off (MACMOE_KERNELS=0); plain operations are used")
    assert asked == []


def test_a_verdict_is_remembered_until_a_fresh_one_is_asked_for(monkeypatch, tmp_path):
    import macmoe

    monkeypatch.setenv("MACMOE_CACHE", str(tmp_path))
    found = [GOOD, SLOW]
    monkeypatch.setattr(choice, "examine", lambda *_: found.pop(0))
    model = macmoe.load("tiny:qwen3").model
    verdicts = [choice.remembered_verdict(model, None, fresh=fresh) for fresh in (False, False, True, False)]
    assert verdicts == [GOOD, GOOD, SLOW, SLOW]
