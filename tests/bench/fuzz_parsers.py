"""Read random outputs of every chat format, sound and broken, until N of each are clean.

    python -m tests.bench.fuzz_parsers [--cases 10000] [--seed 0] [NAME ...]

A sound output has to come back exactly, one of GPT-OSS also where spaces and tokens of its headers are
missing. A broken one may not raise, lose or repeat a word, or be read otherwise when its text is cut into
tokens elsewhere. A failure names its seed: `--seed SEED --cases 1 NAME` repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from tests.chat.broken import check_broken
from tests.chat.generated import WRITERS, check_exact, check_joined

CHECKS = {"sound": check_exact, "joined": check_joined, "broken": check_broken}


def main() -> int:
    """Run the cases, and return 1 where any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(WRITERS)}; default: all")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failures = 0
    for name in options.names or WRITERS:
        began = time.perf_counter()
        found = sum(fails(name, seed) for seed in range(options.seed, options.seed + options.cases))
        seconds = time.perf_counter() - began
        print(f"{name}: {options.cases} cases of each kind, {found} failures, {seconds:.0f} s", flush=True)
        failures += found
    return min(failures, 1)


def fails(name: str, seed: int) -> int:
    """Run all checks with one seed, and return how many failed."""
    found = 0
    for kind, check in CHECKS.items():
        try:
            check(Random(seed), WRITERS[name])
        except Exception as error:  # noqa: BLE001 - whatever a parser raises is a finding
            found += 1
            print(f"{name}, {kind}, seed {seed}: {type(error).__name__} {str(error)[:500]}", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
