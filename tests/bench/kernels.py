"""Check every kernel on this machine's GPU against plain operations in float32.

    python tests/bench/kernels.py

Prints the largest errors of each case in units of the last place of its type at the largest wanted value.
Speed is measured by `macmoe bench` and `macmoe doctor`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ["MLX_ENABLE_TF32"] = "0"  # the references' products are to be those of float32

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.kernels.cases import Runner, error, wrong
from tests.kernels.shapes import real_cases, route_cases, small_cases


def run(name: str, case: Runner) -> bool:
    """Print the errors of one case; return whether they are within the bound."""
    mx.random.seed(0)
    began = time.perf_counter()
    try:
        pairs = case()
        problems = wrong(pairs)
    except Exception as failure:  # noqa: BLE001 - the report goes on with the next case
        print(f"FAILED {name}: {type(failure).__name__}: {str(failure)[:2000]}", flush=True)
        return False
    shown = " ".join(f"{error(got, wanted):.2f}" for got, wanted in pairs)
    seconds = time.perf_counter() - began
    print(f"{'WRONG' if problems else 'ok':6} {name:48} {shown}  ({seconds:.1f} s)", flush=True)
    return not problems


def main() -> None:
    """Run the cases in all types; exit with 1 if one is wrong."""
    results = [run(name, case) for name, case in route_cases().items()]
    for dtype in (mx.bfloat16, mx.float32, mx.float16):
        tables = (real_cases, small_cases) if dtype == mx.bfloat16 else (small_cases,)
        for table in tables:
            results += [run(f"{dtype} {name}".split(".")[-1], case) for name, case in table(dtype).items()]
    print(f"{sum(results)} of {len(results)} cases within their bounds")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
