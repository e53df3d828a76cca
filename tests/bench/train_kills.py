"""Kill trainings at random moments, go on with them, and compare with one that was left alone.

    python tests/bench/train_kills.py [KILLS]

`macmoe lora train` on tiny:gpt-oss is killed (SIGKILL) at moments drawn from its whole duration. After every
kill the last checkpoint must load; the run goes on with --resume, and may be killed again. At the end all
arrays (factors and optimizer), and the facts about the run, must be the same, bit for bit.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from macmoe.adapters.attach import apply
from macmoe.adapters.files import WEIGHTS, read_adapter, read_arrays
from macmoe.session import load
from macmoe.tuning.run_state import STATE

ROOT = Path(__file__).resolve().parents[2]


def contents(folder: Path) -> dict[str, object]:
    """Return what a run left, by name: the bytes of every array, and the facts."""
    found: dict[str, object] = {"adapter.json": (folder / "adapter.json").read_text()}
    for file in (WEIGHTS, STATE):
        arrays, facts = mx.load(str(folder / file), format="safetensors", return_metadata=True)
        found[f"{file}: facts"] = facts
        found |= {f"{file}: {key}": (array.shape, np.array(array).tobytes()) for key, array in arrays.items()}
    return found


def train(data: Path, out: Path) -> list[str]:
    """Return the command; it goes on with what is there."""
    options = ["--model", "tiny:gpt-oss", "--data", str(data), "--out", str(out), "--max-length", "128"]
    options += [
        "--targets",
        "attention,experts,router",
        "--steps",
        "60",
        "--save-every",
        "2",
        "--warmup",
        "0",
    ]
    options += ["--evaluate-every", "7", "--valid-share", "0.2"]
    resume = ["--resume"] if (out / STATE).exists() else []
    return [sys.executable, "-m", "macmoe", "lora", "train", *options, *resume]


def main() -> None:
    """Report every kill, and fail at the first file that differs."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    rng = random.Random(0)
    session = load("tiny:gpt-oss")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data, expected = root / "sums.jsonl", root / "expected"
        rows = [{"prompt": f"What is {i} + 7?", "completion": f"The answer is {i + 7}."} for i in range(60)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        begin = time.perf_counter()
        subprocess.run(train(data, expected), cwd=ROOT, check=True, capture_output=True)
        duration = time.perf_counter() - begin
        done = number = 0
        while done < kills:
            number += 1
            out = root / f"run{number}"
            while not (out / "ended").exists():
                process = subprocess.Popen(train(data, out), cwd=ROOT, stderr=subprocess.DEVNULL)
                if done < kills:
                    time.sleep(rng.uniform(0.1, 1) * duration)
                    done += process.poll() is None
                    process.kill()
                if process.wait() == 0:
                    (out / "ended").touch()
                if (out / WEIGHTS).exists() and (out / "adapter.json").exists():
                    apply(session.model, read_adapter(out, "gpt_oss"))
                if (out / STATE).exists():
                    read_arrays(out / STATE)
            found, wanted = contents(out), contents(expected)
            differing = [key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)]
            print(f"{done} kills, run {number}: {differing[:5] or f'{len(found)} the same'}", flush=True)
            if differing:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
