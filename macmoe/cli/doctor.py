"""`macmoe doctor`: the machine, and whether the kernels are right and fast on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from macmoe.bench.machine import OK, WRONG, Checked, Machine, check, kernels_off, this_machine
from macmoe.bench.weights import random_model, shortened
from macmoe.cli.loading import open_session
from macmoe.cli.options import cache_bits_option, no_kernels_option
from macmoe.cli.shapes import check_memory
from macmoe.cli.terminal import note, size
from macmoe.cli.unknown_keys import allow_unknown_keys_option, find_config
from macmoe.decoding.examination import Check, Verdict
from macmoe.decoding.launches import Judged, KernelCheck
from macmoe.families import Model
from macmoe.location import BUILT_IN, find_model

BYTES_FROM = 1 << 20  # limits of the device from here on are bytes


@click.command()
@click.option("--model", "names", multiple=True, help="Check this model, not the built-in ones; repeatable.")
@click.option(
    "--shape", "shapes", multiple=True, help="Check random weights in a published shape; repeatable."
)
@click.option("--layers", type=click.IntRange(min=1), help="Use only the first N layers of each --shape.")
@click.option("--fresh", is_flag=True, help="Ignore remembered results and check again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@cache_bits_option
@allow_unknown_keys_option
@no_kernels_option
def command(
    *,
    names: tuple[str, ...],
    shapes: tuple[str, ...],
    layers: int | None,
    fresh: bool,
    as_json: bool,
    cache_bits: int | None,
) -> None:
    """Describe this machine, and check the kernels on it.

    Each kind of layer is compared with plain MLX operations, and one token is timed both ways. Results are
    remembered for this device and MLX version; a model whose kernels are wrong or slower runs without them.
    Each kernel is also checked by itself; its time is that of one launch among many independent ones.
    """
    if layers and not shapes:
        raise click.UsageError("--layers shortens what --shape names; give a --shape too.")
    configs = {shape: find_config(shape)[0] for shape in shapes}
    subjects = _subjects(names, {shape: shortened(config, layers) for shape, config in configs.items()})
    machine, off = this_machine(), kernels_off()
    for name in names:
        find_model(name)  # a wrong name is an error where nothing is checked, too
    for shape, config in ({} if off else configs).items():
        check_memory(shape, config, layers)
    checked = _checked({} if off else subjects, fresh=fresh, cache_bits=cache_bits)
    if as_json:
        kernels = {"off": off, "models": [each.to_json() for each in checked]}
        click.echo(json.dumps(asdict(machine) | {"kernels": kernels}, indent=2))
        return
    unchecked = [(name, "not checked") for name in (*names, *shapes)]
    _print(_machine_rows(machine) + ([("kernels", off), *unchecked] if off else []))
    for each in checked:
        _print(_kernel_rows(each))


def _checked(
    subjects: Mapping[str, Callable[[], Model]], *, fresh: bool, cache_bits: int | None
) -> Iterator[Checked]:
    """Check one model after the other; compiling its kernels may take a minute, so it is named first."""
    for name, build in subjects.items():
        note(f"checking the kernels for {name}")
        yield check(name, build(), fresh=fresh, cache_bits=cache_bits)


def _print(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    click.echo("\n".join(f"{label.ljust(width)}  {text}" for label, text in rows))


def _subjects(
    names: Sequence[str], shapes: Mapping[str, Mapping[str, Any]]
) -> dict[str, Callable[[], Model]]:
    """Return what makes each model, so that none is held while the next is made."""

    def stored(name: str) -> Model:
        return open_session(name).model

    named = {name: partial(stored, name) for name in names or (() if shapes else BUILT_IN)}
    return named | {shape: partial(random_model, config) for shape, config in shapes.items()}


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    packages = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rows = [
        ("system", machine.system),
        ("processor", machine.processor),
        ("python", machine.python),
        ("packages", packages),
        ("device", machine.device),
    ]
    return rows + [(name.replace("_", " "), _limit(value)) for name, value in machine.limits.items()]


def _limit(value: object) -> str:
    return size(value) if isinstance(value, int) and value >= BYTES_FROM else str(value)


def _kernel_rows(checked: Checked) -> list[tuple[str, str]]:
    """Return a row per kind of layer and per kernel, and one for the time of a token."""
    verdict = checked.verdict
    if verdict is None:
        return [(checked.model, "no kernels for its form; plain operations are used")]
    rows = [(f"{checked.model}, {kind}", _layer(check)) for kind, check in verdict.checks.items()]
    rows += [(f"{checked.model}, {each.kernel}", _kernel(each, verdict.seconds)) for each in checked.kernels]
    times = f": {_times(verdict.seconds, verdict.plain_seconds)}" if verdict.complete else ""
    return [*rows, (f"{checked.model}, one token", f"{checked.outcome}, {_use(verdict)}{times}")]


def _use(verdict: Verdict) -> str:
    if verdict.use(2):
        return "used"
    return "used for one token at a time" if verdict.use(1) else "not used"


def _layer(check: Check) -> str:
    if check.failure:
        return f"{WRONG}, does not run: {check.failure}"
    return f"{_judged(check)}: {_times(check.seconds, check.plain_seconds)}"


def _kernel(check: KernelCheck, token_seconds: float) -> str:
    share = check.launches * check.seconds / token_seconds
    bandwidth = "" if check.bandwidth is None else f", {check.bandwidth / 1e9:.3g} GB/s of matrices"
    each = f"{check.launches} x {1e6 * check.seconds:.1f} us"
    return f"{_judged(check)}: {each}, {share:.0%} of a token{bandwidth}"


def _judged(check: Judged) -> str:
    outcome = OK if check.right else WRONG
    return f"{outcome} (relative error {check.error:.1e}, allowed {check.bound:.1e})"


def _times(seconds: float, plain_seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms with kernels, {1e3 * plain_seconds:.2f} ms without"
