"""What `macmoe convert` says about quality: bits within a budget, tables and pictures of what was lost."""

from __future__ import annotations

import json
import time
from itertools import product
from typing import TYPE_CHECKING, Any

from macmoe.chat.messages import Message
from macmoe.cli.paths import with_parents
from macmoe.cli.terminal import note, progress_bar, table
from macmoe.cli.unknown_keys import open_conversion, unknown_keys_allowed
from macmoe.errors import UsageError
from macmoe.files import refuse_pointer
from macmoe.generate import generate
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.session import Session, load_folder
from macmoe_converters import Conversion
from macmoe_converters.budget import check_budget
from macmoe_converters.exchange import Progress, choose
from macmoe_converters.quality import losses, report
from macmoe_converters.sensitivity import Passage

if TYPE_CHECKING:
    from pathlib import Path

# What a model is asked, to measure its needs on what it writes itself.
PROMPTS = (
    "What is 17 + 25?",
    "Tell me a short story about a river.",
    "Which is larger, 36 or 63?",
    "How do plants make sugar?",
    "Write a function that returns the largest number of a list.",
    "A box holds 24 eggs. How many are in 6 boxes?",
    "Wie komme ich am besten von Graz nach Bremen?",
    "What is 903 - 458?",
)
ANSWER_TOKENS = 64
TEXT_TOKENS = 512
ENOUGH = 40  # so many times what was measured are all measurements that it foretells
LONG = 90  # seconds that nobody needs to be told of
DURATIONS = {"days": 24 * 3600, "hours": 3600, "minutes": 60}


def own_words(session: Session) -> list[Passage]:
    """Return what a model answers to prompts, the same each time; the prompts themselves do not count.

    Each is answered twice: with the most probable tokens, and with drawn ones.
    """
    samplers = [Sampler(SamplingOptions(temperature=each, seed=0)) for each in (0.0, 1.0)]
    stops = session.format.stop_ids(session.tokenizer) | session.defaults.stop_ids
    passages = []
    for prompt, sampler in product(PROMPTS, samplers):
        asked = session.tokenizer.encode_segments(session.format.render([Message("user", prompt)]))
        answer = generate(session.model, asked, sampler, max_tokens=ANSWER_TOKENS, stop_ids=stops)
        tokens = [*asked, *(token.id for token in answer)]
        passages.append(Passage(tokens=tokens, begin=len(asked) - 1))
    return passages


def open_within(folder: Path, bits_per_weight: float, calibration: Path | None) -> Conversion:
    """Open a conversion whose packings take so many bits per weight, chosen by their measured effects.

    Raises:
        UsageError: The budget is too small, or the text cannot be read, or is empty.
    """
    plain = open_conversion(folder)
    check_budget(plain, bits_per_weight)
    session = load_folder(folder, allow_unknown_keys=unknown_keys_allowed())
    passages = [_passage(session, calibration)] if calibration else own_words(session)
    with progress_bar("measuring") as progress:
        told = telling(folder, progress)
        packings = choose(session.model, plain, passages, bits_per_weight, told)
    return open_conversion(folder, recipe=f"{bits_per_weight:g} bits per weight", packings=packings)


def telling(folder: Path, progress: Progress) -> Progress:
    """Say once, after the first measurements, how long all of them may take, if that is long."""
    begin, told = time.monotonic(), False

    def report(done: int, total: int) -> None:
        nonlocal told
        seconds = (time.monotonic() - begin) * total / done
        if not told and done * ENOUGH >= total and seconds > LONG:
            note(f"{folder}: measuring takes {duration(seconds)} at most, by the first {done:,} of {total:,}")
        told = told or done * ENOUGH >= total
        progress(done, total)

    return report


def duration(seconds: float) -> str:
    """Write a long time in the unit that leaves a readable number."""
    unit = next((unit for unit, length in DURATIONS.items() if seconds >= 2 * length), "minutes")
    return f"about {seconds / DURATIONS[unit]:.0f} {unit}"


def _passage(session: Session, path: Path) -> Passage:
    """Read the beginning of a text."""
    refuse_pointer(path, UsageError)
    try:
        tokens = session.tokenizer.encode(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a text ({error})") from None
    if not tokens:
        raise UsageError(f"{path}: is empty; a calibration text needs words")
    return Passage(tokens=tokens[:TEXT_TOKENS])


def write_quality(conversion: Conversion, path: Path | None, picture: Path | None) -> str:
    """Measure what packing did, write a JSON file and a picture as asked, and return a table."""
    with progress_bar("comparing") as progress:
        found = report(conversion, losses(conversion, progress))
    if path:
        with_parents(path).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if picture:
        figure(found).savefig(with_parents(picture))
    rows = [("", "bits per weight", "relative error")]
    rows += [_row(kind, figures) for kind, figures in found["kinds"].items()]
    rows += [_row("all that is stored", found)]
    worst = [(f"worst: {each['matrix']}", "", f"{each['relative_error']:.4f}") for each in found["worst"][:3]]
    return table([*rows, *worst])


def _row(name: str, figures: dict[str, Any]) -> tuple[str, str, str]:
    return name, f"{figures['bits_per_weight']:.2f}", f"{figures['relative_error']:.4f}"


def figure(found: dict[str, Any]) -> Any:
    """Draw error and bits of each layer, both from 0 on, at whole numbers of layers."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and half a second
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    drawn = Figure(figsize=(8, 4), layout="constrained")
    errors, bits = drawn.subplots(2, 1, sharex=True)
    layers = range(len(found["layers"]))
    errors.plot(layers, [each["relative_error"] for each in found["layers"]], marker="o")
    errors.set_ylabel("relative error")
    errors.set_title(f"{found['recipe']}: {found['bits_per_weight']:.2f} bits per weight")
    bits.bar(layers, [each["bits_per_weight"] for each in found["layers"]])
    bits.set_ylabel("bits per weight")
    bits.set_xlabel("layer")
    bits.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (errors, bits):
        axes.set_ylim(bottom=0)
    return drawn
