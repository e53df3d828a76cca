"""How `macmoe bench` shows what it has measured."""

from __future__ import annotations

import json
from pathlib import Path

import click

from macmoe.bench.measure import BATCH, DECODE, PREFILL, VERIFY, Case, Times
from macmoe.bench.run import OURS, PEER, Report, device_name, versions
from macmoe.cli.paths import with_parents
from macmoe.cli.terminal import size, table

NOTHING = "-"
NOT_MEASURED = "not measured"
BEYOND = "above 100 %"
# Kind -> name of a case of `size` tokens with `context` in the cache.
NAMES = {
    DECODE: "decode after {context:,}",
    PREFILL: "prompt of {size:,}",
    VERIFY: "verify {size:,} after {context:,}",
    BATCH: "{size:,} sequences after {context:,}",
}
# Kind -> how long the tokens of a case take together: what that is called, and how it is written.
WAITS = {
    PREFILL: ("first token after", "{:.3f} s"),
    VERIFY: ("a draft takes", "{:.4f} s"),
    BATCH: ("a token of each takes", "{:.4f} s"),
}


def text(report: Report) -> str:
    """Return the table, a line on the circumstances above it, and why cases are missing below it."""
    names = list(report.kernels)
    rows = [("", *names, "ratio" if len(names) > 1 else "")]
    rows += [
        ("kernels per token", *(f"{report.kernels[name].token:,}" for name in names), ""),
        ("  per layer", *(f"{report.kernels[name].layer:.1f}" for name in names), ""),
    ]
    for case in report.cases:
        rows += _case_rows(report, case, names)
    return "\n".join([_circumstances(report), "", table(rows), *_reasons(report)])


def _circumstances(report: Report) -> str:
    found = versions()
    parts = [
        f"{report.name}, {report.layers} layers, {size(report.weight_bytes)} of weights",
        f"{device_name()}, {report.bandwidth / 1e9:,.0f} GB/s",
        f"MLX {found['mlx']}" + (f", mlx-lm {found[PEER]}" if PEER in report.kernels else ""),
        *([] if report.cache_bits is None else [f"cache in {report.cache_bits} bits"]),
        "with kernels" if report.uses_kernels else "with plain operations",
    ]
    return "; ".join(parts)


def _case_rows(report: Report, case: Case, names: list[str]) -> list[tuple[str, ...]]:
    ratio = case.ratio(OURS, PEER)
    sides = [case.sides[name] for name in names]
    rows = [
        (f"{_name(case)}, tokens/s", *map(_rate, sides), f"{ratio:.2f}" if ratio else ""),
        ("  lowest to highest", *map(_spread, sides), ""),
    ]
    if case.kind == DECODE:
        limit = report.limit(case.size)
        shares = [_share(side.rate / limit) if side.rate else NOTHING for side in sides]
        read = size(report.token_bytes[case.size])
        rows.append((f"  of the limit ({read} per token)", *shares, ""))
    else:
        label, form = WAITS[case.kind]
        waits = [form.format(case.size / side.rate) if side.rate else NOTHING for side in sides]
        rows.append((f"  {label}", *waits, ""))
    if case.same_tokens is not None and case.kind != PREFILL:
        rows.append(("  tokens alike at first", *[str(case.same_tokens)] * len(names), ""))
    peaks = [size(side.peak_bytes) if side.peak_bytes else NOTHING for side in sides]
    transients = [report.transient_bytes(side) for side in sides]
    beyond = [NOTHING if count is None else size(count) for count in transients]
    return [*rows, ("  peak memory", *peaks, ""), ("  of it beyond weights and cache", *beyond, "")]


def _name(case: Case) -> str:
    return NAMES[case.kind].format(size=case.size, context=case.context)


def _rate(side: Times) -> str:
    return f"{side.rate:,.1f}" if side.rate else NOT_MEASURED


def _share(share: float) -> str:
    """Write a share of the limit; a processor's caches, which are not counted, lift small models above it."""
    return f"{100 * share:.1f} %" if share <= 1 else BEYOND


def _spread(side: Times) -> str:
    return f"{min(side.rates):,.1f} to {max(side.rates):,.1f}" if side.rates else NOTHING


def _reasons(report: Report) -> list[str]:
    return [
        f"{_name(case)}, {name}: {len(side.seconds)} rounds: {side.failure}"
        for case in report.cases
        for name, side in case.sides.items()
        if side.failure
    ]


def show(report: Report, json_file: Path | None, plot_file: Path | None) -> None:
    """Print the table and write the files asked for; JSON on stdout takes the place of the table."""
    if json_file is not None:
        with click.open_file(with_parents(json_file), "w", encoding="utf-8", atomic=True) as file:
            file.write(json.dumps(report.to_json(), indent=2) + "\n")
    if str(json_file) != "-":
        click.echo(text(report))
    if plot_file is not None:
        _draw(report, with_parents(plot_file))


def _draw(report: Report, path: Path) -> None:
    """Draw the speeds of all cases, medians with their spread."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(2 + 2 * len(report.cases), 4), layout="constrained")
    panels = figure.subplots(1, len(report.cases), squeeze=False)[0]
    for panel, case in zip(panels, report.cases, strict=True):
        measured = {name: side for name, side in case.sides.items() if side.rate}
        heights = [side.rate for side in measured.values()]
        low = [side.rate - min(side.rates) for side in measured.values() if side.rate]
        high = [max(side.rates) - side.rate for side in measured.values() if side.rate]
        panel.bar(list(measured), heights, yerr=[low, high], capsize=4)
        panel.set_title(_name(case))
        panel.set_ylabel("tokens per second")
    figure.suptitle(f"{report.name}, {device_name()}")
    figure.savefig(path)
