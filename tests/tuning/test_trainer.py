"""Training runs: they learn, touch nothing but the factors, and go on after a kill."""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from macmoe.adapters.attach import apply, arrays_of, attach, detach, put, select
from macmoe.adapters.files import read_adapter
from macmoe.adapters.lora import LoraSpec
from macmoe.errors import CheckpointError, DatasetError, UsageError
from macmoe.tuning.batch import ANSWER, PROMPT, Batch, Sample
from macmoe.tuning.config import TrainOptions
from macmoe.tuning.loss import loss_sums
from macmoe.tuning.metrics import METRICS, PICTURE, Metrics
from macmoe.tuning.run_state import STATE, RunState
from macmoe.tuning.trainer import BEST, TrainData, Trainer
from tests.conftest import ROOT
from tests.tuning.tiny import CONFIGS, EVERYTHING, build, randomize, samples

SPEC = LoraSpec(rank=2, alpha=8.0)
DRAW = Metrics.draw


def data_of(made: list[Sample]) -> TrainData:
    return TrainData(samples=made, places=[f"line {i + 1}" for i in range(len(made))], row_length=32)


def trainer(name: str, out: Path, **options: Any) -> Trainer:
    model = build(name)
    adapters = attach(model, select(model, EVERYTHING, SPEC))
    settings = {"steps": 6, "accumulate": 2, "warmup": 2, "learning_rate": 0.01, "save_every": 2} | options
    made = samples(12)
    return Trainer(
        model,
        adapters,
        TrainOptions(**settings),
        train=data_of(made),
        valid=data_of(samples(3, seed=1)),
        out=out,
        family=name,
    )


def factors(run: Trainer) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in arrays_of(run.adapters).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_learns_and_leaves_every_weight_of_the_base_bit_identical(name: str, tmp_path: Path):
    run = trainer(name, tmp_path, steps=8, clip=0.0)
    before = base_of(run.model)
    run.run()
    assert same(before, base_of(run.model))
    losses = [line["loss"] for line in run.metrics.lines() if "loss" in line]
    assert len(losses) == 8
    assert min(losses[4:]) < losses[0]


def base_of(model: Any) -> dict[str, np.ndarray]:
    return {path: np.array(array) for path, array in tree_flatten(model.parameters()) if "lora" not in path}


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_a_resumed_run_ends_bit_equal_to_one_that_was_not_interrupted(tmp_path: Path, optimizer: str):
    whole = trainer("deepseek_v3", tmp_path / "whole", optimizer=optimizer)
    whole.run()
    first = trainer("deepseek_v3", tmp_path / "parts", optimizer=optimizer)
    first.metrics.watch = lambda line: stop() if line["step"] == 5 else None

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = trainer("deepseek_v3", tmp_path / "parts", optimizer=optimizer)
    second.resume()
    assert second.progress.step == 5
    second.run()
    assert same(factors(whole), factors(second))
    ours, theirs = ([without_times(line) for line in run.metrics.lines()] for run in (whole, second))
    assert ours == theirs


def test_a_run_killed_before_its_first_saving_leaves_no_metrics_to_the_next(tmp_path: Path):
    (tmp_path / METRICS).write_text('{"step": 1, "loss": 9.0}\n{"step": 2, "lo')  # cut by the kill
    run = trainer("qwen3", tmp_path, steps=2)
    run.run()
    assert [line["step"] for line in run.metrics.lines() if "loss" in line] == [1, 2]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("tokens_per_second", "peak_bytes")}


KILLED = """
import sys, time
from pathlib import Path
from tests.tuning.test_trainer import Metrics, trainer
Metrics.draw = lambda _: None
run = trainer("gpt_oss", Path(sys.argv[1]), steps=int(sys.argv[2]), save_every=1)
if (Path(sys.argv[1]) / "state.safetensors").exists():
    run.resume()
run.run()
"""
STEPS = 12


def start(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", KILLED, str(out), str(STEPS)], cwd=ROOT)


def test_a_run_killed_at_random_moments_leaves_a_loadable_adapter_and_ends_bit_equal(tmp_path: Path):
    whole = trainer("gpt_oss", tmp_path / "whole", steps=STEPS, save_every=1)
    whole.run()
    out = tmp_path / "killed"
    rng = np.random.default_rng(int(time.time()))
    for seen in (2, 6):
        process = start(out)
        while process.poll() is None and saved_steps(out) < seen:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.1)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        adapter = read_adapter(out, "gpt_oss")
        apply(build("gpt_oss"), adapter)
    assert start(out).wait() == 0
    ended = read_adapter(out, "gpt_oss").arrays
    assert same({name: np.array(array) for name, array in ended.items()}, factors(whole))


def saved_steps(out: Path) -> int:
    if not (out / METRICS).exists() or not (out / "adapter.json").exists():
        return 0
    return (out / METRICS).read_text().count("\n")


def test_gradients_are_weighted_by_token_however_samples_are_spread_over_batches(tmp_path: Path):
    gathered = trainer("qwen3", tmp_path / "a", steps=1, rows=12, accumulate=1, packed=False)
    spread = trainer("qwen3", tmp_path / "b", steps=1, rows=1, accumulate=12, packed=False)
    gathered.run()
    spread.run()
    a, b = (run.metrics.lines()[0] for run in (gathered, spread))
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
    assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)


def test_experts_that_no_token_uses_have_a_gradient_of_exactly_zero():
    model = build("qwen3_moe")
    adapters = attach(model, select(model, ("experts",), SPEC))
    randomize(adapters)
    used: dict[int, set[int]] = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.experts = Recorder(layer.mlp.experts, used.setdefault(index, set()))
    batch = Batch.of([[Sample(tokens=[5, 9], weights=[0, 1], kinds=[PROMPT, ANSWER])]], 1)

    def loss(arrays: dict[str, mx.array]) -> mx.array:
        put(adapters, arrays)
        return loss_sums(model, batch).loss.sum()

    gradients = mx.grad(loss)(arrays_of(adapters))
    for path, gradient in gradients.items():
        layer = int(path.split(".")[2])
        unused = sorted(set(range(8)) - used[layer])
        assert unused
        assert not np.array(gradient)[unused].any(), path
        if path.endswith("lora_b"):
            assert np.array(gradient)[sorted(used[layer])].any(axis=(1, 2)).all(), path


class Recorder(nn.Module):
    def __init__(self, experts: nn.Module, used: set[int]) -> None:
        super().__init__()
        self.experts, self._see = experts, used.update

    def __call__(self, x: mx.array, chosen: mx.array, weights: mx.array) -> mx.array:
        self._see(int(i) for i in np.array(mx.stop_gradient(chosen)).flatten())
        return self.experts(x, chosen, weights)


def test_a_loss_that_is_no_number_names_the_samples_and_keeps_what_was_saved(tmp_path: Path):
    run = trainer("qwen3", tmp_path, save_every=1, steps=3)
    run.metrics.watch = lambda line: poison() if line["step"] == 2 else None

    def poison() -> None:
        run.model.model.norm.weight = run.model.model.norm.weight * mx.nan

    with pytest.raises(DatasetError, match=r"step 3: the loss is nan.* line \d+"):
        run.run()
    adapter = read_adapter(tmp_path, "qwen3")
    assert all(mx.isfinite(array).all() for array in adapter.arrays.values())


def test_training_stops_when_evaluations_get_no_better_and_keeps_the_best(tmp_path: Path):
    settings = {"steps": 40, "evaluate_every": 3, "patience": 1, "learning_rate": 0.2, "warmup": 0}
    run = trainer("qwen3", tmp_path, **settings)
    progress = run.run()
    assert progress.step < 40
    again = trainer("qwen3", tmp_path, **settings)
    again.resume()
    assert again.run() == progress
    assert same(factors(again), factors(run))
    lines = [line for line in run.metrics.lines() if "valid_loss" in line]
    assert progress.best == min(line["valid_loss"] for line in lines) < lines[-1]["valid_loss"]
    model = run.model
    detach(model)
    apply(model, read_adapter(tmp_path / BEST, "qwen3"))
    assert run.valid_data is not None
    assert run.evaluate(run.valid_data).mean == pytest.approx(progress.best, rel=1e-6)


def test_a_run_with_other_settings_or_data_does_not_go_on(tmp_path: Path):
    trainer("qwen3", tmp_path, steps=2).run()
    with pytest.raises(UsageError, match="learning_rate"):
        trainer("qwen3", tmp_path, steps=2, learning_rate=0.02).resume()
    with pytest.raises(UsageError, match="begun with steps = 2, not without"):
        trainer("qwen3", tmp_path, steps=None).resume()
    other = trainer("qwen3", tmp_path, steps=2)
    other.origin = "of an adapter"
    with pytest.raises(UsageError, match="begun with another adapter, or with none"):
        other.resume()
    other = trainer("qwen3", tmp_path, steps=2)
    other.train_data = data_of(samples(12, seed=9))
    with pytest.raises(UsageError, match="begun with other data to learn;"):
        other.resume()
    other = trainer("qwen3", tmp_path, steps=2)
    other.valid_data = data_of(samples(3, seed=9))
    with pytest.raises(UsageError, match="validation data"):
        other.resume()
    other = trainer("qwen3", tmp_path, steps=2)
    other.train_data = dataclasses.replace(other.train_data, row_length=64)
    with pytest.raises(UsageError, match="begun with max_length = 32, not 64"):
        other.resume()
    with pytest.raises(UsageError, match="resume it"):
        trainer("qwen3", tmp_path, steps=2).run()


def test_a_run_of_an_earlier_macmoe_is_refused_in_one_line(tmp_path: Path):
    run = trainer("qwen3", tmp_path, steps=2)
    run.run()
    earlier = {name: value for name, value in run.identity.items() if name != "base model"}
    dataclasses.replace(RunState.load(tmp_path, earlier), identity=earlier).save(tmp_path)
    with pytest.raises(UsageError, match="did not note the base model of this run"):
        trainer("qwen3", tmp_path, steps=2).resume()


def test_a_damaged_or_missing_state_is_one_line(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no run to resume"):
        trainer("qwen3", tmp_path).resume()
    (tmp_path / STATE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        trainer("qwen3", tmp_path).resume()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = trainer("qwen3", tmp_path, steps=2, save_every=1)
    run.run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*unharmed"):
        run.save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_files_that_may_not_grow_are_one_line_and_what_was_saved_goes_on(tmp_path: Path):
    whole = trainer("qwen3", tmp_path / "whole", steps=4, save_every=1)
    whole.run()
    out = tmp_path / "run"
    run = trainer("qwen3", out, steps=4, save_every=1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limits = {2: 4000, 3: hard}  # from this step on; 4,000 bytes are enough for metrics, not for factors
    run.metrics.watch = lambda line: resource.setrlimit(
        resource.RLIMIT_FSIZE, (limits.get(line["step"], hard), hard)
    )
    try:
        with pytest.raises(CheckpointError, match=r"Unable to write.*unharmed"):
            run.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not list(out.glob(".*partial*"))
    again = trainer("qwen3", out, steps=4, save_every=1)
    again.resume()
    assert again.progress.step == 1
    again.run()
    assert same(factors(whole), factors(again))


def test_data_without_a_supervised_token_is_refused():
    with pytest.raises(DatasetError, match="nothing to learn"):
        data_of([Sample(tokens=[1, 2], weights=[0, 0], kinds=[0, 0])])


def test_metrics_are_json_lines_with_losses_apart(tmp_path: Path):
    run = trainer("qwen3", tmp_path, steps=2, evaluate_every=1)
    run.run()
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert {"loss", "thinking_loss", "answer_loss", "learning_rate", "gradient_norm"} <= lines[0].keys()
    assert lines[1]["perplexity"] == pytest.approx(np.exp(lines[1]["valid_loss"]))


def test_a_picture_takes_one_look_at_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Metrics, "draw", DRAW)
    run = trainer("qwen3", tmp_path, steps=1)
    run.run()
    (tmp_path / PICTURE).unlink()
    looks = []
    monkeypatch.setattr(Metrics, "lines", lambda _: looks.append(1) or [{"step": 1, "loss": 2.0}])
    run.metrics.draw()
    assert len(looks) == 1
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


SHARED = """
import json, sys
from pathlib import Path
from tests.tuning.test_trainer import Metrics, trainer
Metrics.draw = lambda _: None
run = trainer("qwen3_moe", Path(sys.argv[1]), steps=2, accumulate=1, rows=2, packed=False)
run.run()
"""


def test_two_processes_share_a_step_and_end_where_one_ends(tmp_path: Path):
    alone = trainer("qwen3_moe", tmp_path / "alone", steps=2, accumulate=2, rows=2, packed=False)
    alone.run()
    (tmp_path / "run.py").write_text(SHARED)
    launch = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--backend", "ring"]
    launch += ["--python", sys.executable, "--env", f"PYTHONPATH={ROOT}", str(tmp_path / "run.py")]
    subprocess.run([*launch, str(tmp_path / "two")], cwd=ROOT, check=True, capture_output=True, timeout=120)
    together = read_adapter(tmp_path / "two", "qwen3_moe").arrays
    for name, array in factors(alone).items():
        assert np.array(together[name]) == pytest.approx(array, abs=1e-6), name
