"""Check every kernel on this machine's GPU against plain operations in float32.

    python tests/bench/kernels.py [--types bfloat16 float32 float16] [--only latent]

Several processes may share the types: most of the time is compilation. Prints the largest errors of each case
in units of the last place of its type at the largest wanted value. Speed is measured by `macmoe bench` and
`macmoe doctor`.
"""

from __future__ import annotations

import argparse
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


TYPES = {"bfloat16": mx.bfloat16, "float32": mx.float32, "float16": mx.float16}


def main() -> None:
    """Run the cases in the types asked for; exit with 1 if one is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", nargs="+", default=[*TYPES], choices=[*TYPES], metavar="TYPE")
    parser.add_argument("--only", default="", metavar="TEXT", help="Cases with this in their names.")
    given = parser.parse_args()
    cases = dict(route_cases())
    for name in given.types:
        dtype = TYPES[name]
        of_type = small_cases(dtype) | (real_cases(dtype) if dtype == mx.bfloat16 else {})
        cases |= {f"{name} {case}": runner for case, runner in of_type.items()}
    chosen = {name: case for name, case in cases.items() if given.only in name}
    if not chosen:
        parser.error(f"no case has {given.only!r} in its name")
    results = [run(name, case) for name, case in chosen.items()]
    print(f"{sum(results)} of {len(results)} cases within their bounds")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
