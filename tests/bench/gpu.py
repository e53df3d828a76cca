"""Measure everything that docs/performance.md states of one GPU, in under eight minutes.

    python tests/bench/gpu.py --json FILE [--seconds 460] [--cache-bits 8]
        [--stages decode prefill-2048 memory prefill-16384 verify batch]

Published shapes with random weights, beside mlx-lm on the same weights. FILE is written after every case, so
that a run that is cut off loses nothing; a case for which no time is left is written down as not measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from macmoe.bench.measure import Plan, settle
from macmoe.bench.run import SIZES, Report, Subject, Work, run
from macmoe.config import load_json
from macmoe.location import ASSETS

# Shape -> layers, None for all.
SHAPES: dict[str, int | None] = {"gpt-oss-20b": None, "qwen3-30b-a3b": None, "deepseek-v3": 7}
LEAST = 15.0  # seconds without which a stage is not begun: weights have to be drawn, kernels compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What is measured of each shape before the next stage begins."""

    contexts: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    against_peer: bool = True
    rounds: int = 3
    tokens: int = 64
    shapes: tuple[str, ...] = tuple(SHAPES)

    def work(self, plan: Plan) -> Work:
        """Return its cases."""
        return Work(**{name: getattr(self, name) for name in SIZES}, plan=plan)


STAGES = {
    "decode": Stage(contexts=(512, 8_192)),
    "prefill-2048": Stage(prompts=(2_048,)),
    "memory": Stage(prompts=(32_768,), against_peer=False, rounds=1, shapes=("deepseek-v3",)),
    "prefill-16384": Stage(prompts=(16_384,), rounds=2),
    "verify": Stage(drafts=(2, 8, 32)),  # at 512
    "batch": Stage(batches=(2, 8, 16)),  # at 512
}


class Log:
    """What has been measured so far, on disk."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.began = time.perf_counter()
        self.seconds = seconds
        self.done: list[dict[str, Any]] = []

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.seconds - (time.perf_counter() - self.began)

    def write(self, *unfinished: dict[str, Any]) -> None:
        """Replace the file by what is done, and what is not yet."""
        rows = [*self.done, *unfinished]
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        Path(temporary).replace(self.path)

    def add(self, row: dict[str, Any]) -> None:
        """Note a finished row."""
        self.done.append(row)
        self.write()


def measure(
    name: str,
    stage: Stage,
    plan: Plan,
    *,
    small: bool,
    cache_bits: int | None,
    done: Callable[[Report], None],
) -> Report:
    """Draw a model and measure a stage of it."""
    began = time.perf_counter()
    if small:
        sys.path.insert(0, "converters")
        from macmoe_converters.targets import hub_spelling

        config = load_json(next(ASSETS.glob(f"{name[:3]}*/config.json")))
        subject = Subject.drawn(name, hub_spelling(config), cache_bits=cache_bits)
        stage = replace(stage, contexts=stage.contexts[:1], prompts=tuple(n // 64 for n in stage.prompts))
    else:
        config = load_json(ASSETS / "configs" / f"{name}.json")
        subject = Subject.drawn(name, config, SHAPES[name], cache_bits)
    sides = subject.sides(against_peer=stage.against_peer)
    print(f"{name}: weights drawn in {time.perf_counter() - began:.1f} s", flush=True)
    return run(subject, sides, stage.work(plan), done=done)


def show(report: Report) -> None:
    """Print the last case, a line for each side."""
    case = report.cases[-1]
    ratio = case.ratio("macmoe", "mlx-lm")
    heading = f"{report.name} {case.kind} {case.size} after {case.context}"
    print(heading + (f": ratio {ratio:.2f}" if ratio else ""))
    for name, times in case.sides.items():
        speed = f"{times.rate:.1f} tok/s" if times.rate else "not measured"
        rates = ", ".join(f"{rate:.1f}" for rate in times.rates)
        beyond = (report.transient_bytes(times) or 0) / 2**30
        print(
            f"  {name:8} {speed} ({rates}); peak {times.peak_bytes / 2**30:.2f} GiB, {beyond:.2f} GiB beyond "
            f"weights and cache; {report.kernels[name].layer:.1f} kernels per layer {times.failure}",
            flush=True,
        )


def stage_of_shape(log: Log, stage_name: str, name: str, *, small: bool, cache_bits: int | None) -> None:
    """Measure one stage of one shape, whatever happens."""
    stage = STAGES[stage_name]
    label = {"stage": stage_name, "model": name}
    if log.left < LEAST:
        log.add(label | {"not_measured": f"the budget of {log.seconds:.0f} s is used up"})
        return
    share = log.left / stage.work(Plan()).cases  # so that all of them end in time
    plan = Plan(tokens=stage.tokens, rounds=stage.rounds, time_limit=share)

    def done(report: Report) -> None:
        show(report)
        log.write(label | report.to_json() | {"seconds_left": log.left})

    try:
        report = measure(name, stage, plan, small=small, cache_bits=cache_bits, done=done)
        log.add(label | report.to_json() | {"seconds_left": log.left})
    except Exception as error:  # noqa: BLE001 - the other shapes go on
        log.add(label | {"not_measured": f"{type(error).__name__}: {error}"})
        print(f"{name} {stage_name} FAILED: {error}", flush=True)
    gc.collect()
    settle()


def main() -> None:
    """Measure stage by stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--cache-bits", type=int, choices=[8], help="of macmoe's cache")
    parser.add_argument("--small", action="store_true", help="of tiny models: whether this script runs")
    options = parser.parse_args()
    print(f"{mx.device_info()}, MLX {mx.__version__}", flush=True)
    log = Log(options.json, options.seconds)
    for stage in options.stages:
        for name in options.shapes:
            if name in STAGES[stage].shapes:
                stage_of_shape(log, stage, name, small=options.small, cache_bits=options.cache_bits)
                print(f"{log.left:.0f} s left", flush=True)


if __name__ == "__main__":
    main()
