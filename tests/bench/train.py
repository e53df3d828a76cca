"""Measure LoRA training at the shapes of published models, beside the peer, on the same random weights.

    python tests/bench/train.py [gpt-oss-20b] [qwen3-30b-a3b] [--small] [--json FILE]

Both trainers run whole, as they come: `macmoe.tuning.trainer.Trainer` and mlx-lm's `train`, each with and
without computing layers again for the gradient, in this process, in turn, on the same arrays (ours with gate
and up joined). Widths are real, layers few. GPT-OSS has MXFP4 experts and bfloat16 elsewhere; of Qwen3 every
matrix but the router is affine, 4 bits in groups of 64. Each sample fills its row. The same matrices are
adapted, at one rank; of joined gate and up ours has twice the rank, which is what two adapters apart amount
to. A round runs every trainer; its first step, which compiles, is not counted. The peak is MLX's, without
what the other trainer's model holds. `--small` is for a CPU: float32, narrow.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten, tree_unflatten

from macmoe.adapters.attach import attach, detach, select
from macmoe.adapters.lora import LoraSpec
from macmoe.bench.peer import peer_model
from macmoe.bench.weights import random_model, shortened
from macmoe.config import load_json
from macmoe.location import ASSETS
from macmoe.tuning.batch import ANSWER, Sample
from macmoe.tuning.config import TrainOptions
from macmoe.tuning.trainer import TrainData, Trainer

RANK, SCALE = 8, 20.0
ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
# The peer's and our names of the experts.
EXPERTS = {"gpt_oss": "mlp.experts", "qwen3_moe": "mlp.switch_mlp"}
TRAINERS = ["macmoe", "mlx-lm", "mlx-lm, checkpointing", "macmoe, nothing again"]
CASES = {"attention": False, "attention + experts": True}  # whether experts are adapted
SMALL: dict[str, Any] = {"hidden_size": 128, "vocab_size": 16384, "num_attention_heads": 4, "head_dim": 64}
SMALL |= {"num_key_value_heads": 2, "intermediate_size": 128, "moe_intermediate_size": 64}
FEWER = {"gpt_oss": {"num_local_experts": 8}, "qwen3_moe": {"num_experts": 16, "num_experts_per_tok": 4}}


@dataclass(kw_only=True)
class Runs:
    """What one trainer did.

    Attributes:
        seconds: Of every counted step.
        peak: Bytes at the peak: its model's weights, and all that training adds.
        above: Of these, what is not weights.
        loss: Of the first step.
        error: Why it could not run.
    """

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    above: int = 0
    loss: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured.

    Attributes:
        config: Of the model.
        length: Tokens of a row.
        rows: Rows of a batch.
        steps: Counted steps of a run.
        experts: Whether experts are adapted, too.
    """

    config: dict[str, Any]
    length: int
    rows: int
    steps: int
    experts: bool

    @property
    def tokens(self) -> list[list[int]]:
        """The samples of the only batch."""
        shape = (self.rows, self.length + 1)
        drawn: Any = mx.random.randint(0, self.config["vocab_size"], shape, key=mx.random.key(0))
        return drawn.tolist()


def run_ours(model: Any, setting: Setting, report: Callable[[float], None], *, again: bool) -> None:
    """Train with macmoe; `again`: compute layers again for the gradient."""
    weights, kinds = [0.0] + [1.0] * setting.length, [ANSWER] * (setting.length + 1)
    samples = [Sample(tokens=tokens, weights=weights, kinds=kinds) for tokens in setting.tokens]
    spec = LoraSpec(rank=RANK, alpha=SCALE * RANK)
    joined = {"*.gate_up_proj": LoraSpec(rank=2 * RANK, alpha=2 * SCALE * RANK)} if setting.experts else {}
    targets = ("attention", "experts") if setting.experts else ("attention",)
    adapters = attach(model, select(model, targets, spec, joined))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            adapters,
            TrainOptions(
                steps=setting.steps + 1,
                rows=setting.rows,
                learning_rate=1e-5,
                warmup=0,
                evaluate_every=0,
                save_every=10**9,
                recompute=again,
            ),
            train=TrainData(samples=samples, places=["bench"] * len(samples), row_length=setting.length),
            valid=None,
            out=Path(folder),
            family="bench",
            watch=lambda line: report(line["loss"]),
        )
        trainer.run()
    detach(model)


class Reports:
    """The peer's callback."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self.report = report

    def on_train_loss_report(self, info: dict[str, Any]) -> None:
        """Pass a step's loss on."""
        self.report(info["train_loss"])


def run_peer(model: nn.Module, setting: Setting, report: Callable[[float], None], *, again: bool) -> None:
    """Train with mlx-lm, with its defaults; `again`: its gradient checkpointing."""
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    parts = [f"{EXPERTS[setting.config['model_type']]}.{name}_proj" for name in ("gate", "up", "down")]
    keys = [*ATTENTION, *(parts if setting.experts else [])]
    layers: Any = model.layers
    model.freeze()
    linear_to_lora_layers(model, len(layers), {"rank": RANK, "scale": SCALE, "dropout": 0.0, "keys": keys})
    call = type(layers[0]).__call__  # which checkpointing replaces
    data = [(tokens, 0) for tokens in setting.tokens]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrainingArgs(
            batch_size=setting.rows,
            iters=setting.steps + 1,
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=setting.length + 1,
            adapter_file=f"{folder}/adapters.safetensors",
            grad_checkpoint=again,
        )
        callback: Any = Reports(report)
        train(model, optimizers.Adam(1e-5), data, args=arguments, training_callback=callback)
    type(layers[0]).__call__ = call
    bare: Any = [(path, m["linear"]) for path, m in model.named_modules() if "lora_a" in m]
    model.update_modules(tree_unflatten(bare))


def measure(run: Callable[[Callable[[float], None]], None], weights: int, runs: Runs) -> None:
    """Run a trainer once and add what it did."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    moments: list[float] = []

    def report(loss: float) -> None:
        moments.append(time.perf_counter())
        runs.loss = loss if runs.loss is None else runs.loss

    try:
        run(report)
    except (RuntimeError, ValueError) as error:
        runs.error = f"{type(error).__name__}: {error}"
        return
    runs.above = max(runs.above, mx.get_peak_memory() - before)
    runs.peak = runs.above + weights
    runs.seconds += [later - earlier for earlier, later in itertools.pairwise(moments)]


def compare(
    setting: Setting, models: tuple[nn.Module, Any], names: list[str], rounds: int, until: float
) -> dict[str, Any]:
    """Let the trainers of these names take turns."""
    peer, ours = models
    arrays: Any = tree_flatten(ours.parameters())
    weights = sum(array.nbytes for _, array in arrays)
    trainers: dict[str, Callable[[Callable[[float], None]], None]] = {
        "macmoe": lambda report: run_ours(ours, setting, report, again=True),
        "mlx-lm": lambda report: run_peer(peer, setting, report, again=False),
        "mlx-lm, checkpointing": lambda report: run_peer(peer, setting, report, again=True),
        "macmoe, nothing again": lambda report: run_ours(ours, setting, report, again=False),
    }
    trainers = {name: trainers[name] for name in names}
    found = {name: Runs() for name in trainers}
    for number in range(rounds):
        for name, run in trainers.items():
            if found[name].error is None and (number == 0 or time.monotonic() < until):
                measure(run, weights, found[name])
                print(f"  round {number + 1}, {name}: {found[name]}", flush=True)
    batch = setting.rows * setting.length
    results: dict[str, Any] = {}
    for name, runs in found.items():
        if runs.error is not None:
            results[name] = {"error": runs.error}
            continue
        results[name] = {
            "tokens per second": batch / statistics.median(runs.seconds),
            "seconds": runs.seconds,
            "peak bytes": runs.peak,
            "peak bytes above the weights": runs.above,
            "first loss": runs.loss,
        }
    return results


def table(case: str, results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of one case; ratios are ours to the peer's."""
    ours = results["macmoe"]
    yield f"| {case} | tok/s | macmoe / this | peak GB | macmoe / this | above weights GB | first loss |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in results.items():
        if "error" in one:
            yield f"| {name} | {one['error'][:120]} | | | | | |"
            continue
        ratios = ("", "")
        if "error" not in ours:
            speed = ours["tokens per second"] / one["tokens per second"]
            ratios = (f"{speed:.2f}", f"{ours['peak bytes'] / one['peak bytes']:.2f}")
        yield (
            f"| {name} | {one['tokens per second']:.0f} | {ratios[0]} | {one['peak bytes'] / 1e9:.2f} | "
            f"{ratios[1]} | {one['peak bytes above the weights'] / 1e9:.2f} | {one['first loss']:.4f} |"
        )


def models_of(name: str, layers: int, *, small: bool) -> tuple[dict[str, Any], nn.Module, Any]:
    """Return a shape's configuration, the peer's model and ours."""
    config = load_json(ASSETS / "configs" / f"{name}.json")
    config.pop("quantization_config", None)
    config = shortened(config, layers)
    if small:
        config |= {key: value for key, value in SMALL.items() if key in config}
        config |= FEWER[config["model_type"]]
    ours = random_model(config, mx.float32 if small else mx.bfloat16)
    return config, peer_model(ours, config), ours


def main() -> None:
    """Measure the shapes named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", nargs="*", default=["gpt-oss-20b", "qwen3-30b-a3b"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=170, help="start no further round after these")
    parser.add_argument("--trainers", nargs="+", default=TRAINERS, choices=TRAINERS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    length = options.length or (256 if options.small else 2048)
    report: dict[str, Any] = {"device": str(mx.device_info().get("device_name", mx.default_device()))}
    report |= {"layers": options.layers, "rows": options.rows, "length": length}
    for place, shape in enumerate(options.shapes, 1):
        config, *models = models_of(shape, options.layers, small=options.small)
        for part, case in enumerate(options.cases, 1):
            share = (place - 1 + part / len(options.cases)) / len(options.shapes)
            setting = Setting(
                config=config,
                length=length,
                rows=options.rows,
                steps=options.steps,
                experts=CASES[case],
            )
            results = compare(
                setting,
                (models[0], models[1]),
                options.trainers,
                options.rounds,
                began + share * options.seconds,
            )
            report[f"{shape}, {case}"] = results
            print("\n".join(table(f"{shape}, {case}", results)), flush=True)
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n")
        del models
        gc.collect()
        mx.clear_cache()
    print(f"{report['device']}: {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
