"""Measure conversions of large checkpoints beside `cp -r` of the same folder.

    python tests/bench/convert.py FOLDER [RUNS] [PAUSE]

FOLDER is what make_checkpoint.py wrote, or any hub folder; the output goes beside it and is removed. The
source is read once beforehand, so that it is in the page cache; then all take turns. Throughput is the bytes
of the source per second of wall time. Peak memory is that of the converting process.

A virtual machine gives memory that was freed back to its host, beginning some seconds later, and takes
several times as long to use it again. The pages of a removed output are free: a fast command gets them
back at once, a slower one loses them on its way. PAUSE seconds (10) before each command let all begin alike.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(command: list[str]) -> tuple[float, float, float]:
    """Return seconds, seconds of CPU time, and peak resident bytes of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


def main() -> None:
    """Print a line for each run, and the medians."""
    folder = Path(sys.argv[1]).resolve()
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    size = sum(path.stat().st_size for path in folder.iterdir())
    pause = float(sys.argv[3]) if len(sys.argv) > 3 else 10.0
    out = folder.with_name(f"{folder.name}-out")
    convert = [sys.executable, "-m", "macmoe", "convert", str(folder), "--out", str(out)]
    commands = {
        "cp -r": ["cp", "-r", str(folder), str(out)],
        "convert --no-hashes": [*convert, "--no-hashes"],
        "convert": convert,
    }
    for path in folder.iterdir():  # into the page cache
        subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            time.sleep(pause)
            seconds, cpu, peak = run(command)
            rates[name].append(size / seconds)
            print(f"{name:20} {seconds:6.1f} s {cpu:6.1f} s CPU {size / seconds / 1e9:6.2f} GB/s", end=" ")
            print(f"{peak / 1e9:6.2f} GB", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    print(f"{size / 1e9:.2f} GB; medians:")
    for name, rate in medians.items():
        print(f"{name:20} {rate / 1e9:6.2f} GB/s  {rate / medians['cp -r']:.0%}")


if __name__ == "__main__":
    main()
