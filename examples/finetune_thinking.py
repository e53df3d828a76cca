"""Teach a tiny model a new operation with thinking: a # b = a + 2b, worked digit by digit.

The model can add, but `#` means nothing to it. A few worked examples train a first adapter. With it the
model answers many new questions, and only replies whose answer is right are kept (rejection sampling
against an exact verifier). They train the second adapter, on the untouched model, with as many updates and
as many samples as the first: it sees more questions, not more of them. Right replies of the untouched model
to old questions, with and without thinking, are mixed in, so that it keeps what it knew and both modes;
samples of both modes share the rows of a batch. No question of the exams shares its numbers with one that
was learnt.

Without arguments everything is small, to see it run; `--full` is the real thing, minutes to a model. Both end
with a table: right answers with and without thinking, and how often the mode was kept.
"""

import argparse
import json
import random
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import macmoe
from macmoe.chat.format import Thinking
from macmoe.sampling import SamplingOptions
from macmoe.tuning.config import LoraOptions, RunOptions, TrainOptions
from macmoe.tuning.data import read_dataset
from macmoe.tuning.distill import DistillOptions, distill
from macmoe.tuning.evaluation import examine
from macmoe.tuning.prepare import DataOptions
from macmoe.tuning.run import open_run
from macmoe.tuning.verifiers import open_verifier

NEW = ("What is {} # {}?", "{} # {}", "Find {} # {}.", "How much is {} # {}?")
# What the model knows: wording, and the answer from three numbers and a digit.
OLD: tuple[tuple[str, Callable[[int, int, int, int], int | str]], ...] = (
    ("What is {} + {}?", lambda a, b, *_: a + b),
    ("Add {} and {}.", lambda a, b, *_: a + b),
    ("What is {} - {}?", lambda a, b, *_: a - b),
    ("There were {} birds and {} flew away. How many are left?", lambda a, b, *_: a - b),
    ("What is {0} * {3}?", lambda a, _b, _c, d: a * d),
    ("Which is larger, {} or {}?", lambda a, b, *_: max(a, b)),
    ("Is {1} greater than {0}?", lambda a, b, *_: "yes" if b > a else "no"),
    ("What is {} + {} + {}?", lambda a, b, c, _d: a + b + c),
    ("What is {0} * {3} - {1}?", lambda a, b, _c, d: a * d - b),
)
MODES: tuple[Thinking, ...] = ("on", "off")
EXACT = open_verifier("exact")
MAX_TOKENS = 160
COLUMNS = ("new, thinking", "new, direct", "old, thinking", "old, direct", "modes kept")


@dataclass(frozen=True)
class Sizes:
    """How many worked examples, questions and updates."""

    worked: int
    asked: int
    # New samples in a training set: the worked examples are repeated, the distilled ones repeated or cut.
    taught: int
    # Old questions, asked with thinking and without: what is computed without a working is forgotten first.
    replayed: tuple[int, int]
    exam: int
    updates: int
    rows: int


QUICK = Sizes(worked=4, asked=4, taught=4, replayed=(2, 2), exam=2, updates=1, rows=2)
FULL = Sizes(worked=24, asked=600, taught=500, replayed=(1200, 2000), exam=400, updates=240, rows=6)


def is_held_out(*numbers: int) -> bool:
    """Tell whether questions about these numbers are for exams only."""
    return zlib.crc32(repr(sorted(numbers)).encode()) % 5 == 0


def number(rng: random.Random, fewest: int, most: int) -> int:
    """Draw a number of so many digits, above zero."""
    digits = rng.randint(fewest, most)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def sum_of(a: int, b: int) -> list[str]:
    """Write an addition down as the model has learnt it."""
    lines, carry = [f"{a}+{b}"], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        lines.append(f"{x}+{y}+1={x + y + 1}" if carry else f"{x}+{y}={x + y}")
        carry = (x + y + carry) // 10
    return [*lines, f"={a + b}"]


def row(prompt: str, answer: int | str, **more: str) -> dict[str, str]:
    """Return a question with its answer as a row of a data set."""
    return {"prompt": prompt, "completion": f"The answer is {answer}.", **more}


def new_questions(seed: str, *, held_out: bool) -> Iterator[dict[str, str]]:
    """Yield questions about the new operation, with the working and the answer."""
    rng = random.Random(seed)  # noqa: S311 - questions, not secrets
    while True:
        a, b = number(rng, 1, 3), number(rng, 1, 3)
        if is_held_out(a, b) == held_out:
            working = "\n".join([*sum_of(a, b), *sum_of(a + b, b)])
            yield row(rng.choice(NEW).format(a, b), a + b + b, reasoning=working)


def old_questions(seed: str, *, held_out: bool) -> Iterator[dict[str, str]]:
    """Yield questions of the kinds that the model knows, with the answer."""
    rng = random.Random(seed)  # noqa: S311 - questions, not secrets
    while True:
        digits = rng.choice(((1, 2), (3, 4)))
        c, b, a = sorted(number(rng, *digits) for _ in range(3))
        text, answer = rng.choice(OLD)
        if a != b and is_held_out(a) == held_out:  # every question names the largest
            numbers = (a, b, c, rng.randint(2, 9))
            yield row(text.format(*numbers), answer(*numbers))


def write(path: Path, rows: Iterable[dict[str, str]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


def ask(session: macmoe.Session, questions: Path, out: Path, options: DistillOptions) -> Path:
    """Let the model make samples: right replies to questions."""
    tally = distill(session, read_dataset(str(questions)).records, EXACT, options, out)
    print(
        f"{out.name}: {tally.solved} of {tally.questions} questions solved in {tally.tries} tries", flush=True
    )
    return out


def replay(session: macmoe.Session, mode: Thinking, count: int, folder: Path) -> Path:
    """Return what the model replies to old questions, where that is right."""
    known = write(folder / f"known_{mode}.jsonl", islice(old_questions("known", held_out=False), count))
    greedy = DistillOptions(
        thinking=mode, tries=1, block=200, max_tokens=MAX_TOKENS, sampling=SamplingOptions(temperature=0)
    )
    return ask(session, known, folder / f"replayed_{mode}.jsonl", greedy)


def train(model: str, new: Path, replayed: list[Path], out: Path, sizes: Sizes) -> Path:
    """Train an adapter on new samples, always the same number, and on the old ones."""
    samples = new.read_text().splitlines(keepends=True)
    lines = [*islice(cycle(samples), sizes.taught), *(path.read_text() for path in replayed)]
    joined = out.with_suffix(".jsonl")
    joined.write_text("".join(lines))
    run = RunOptions(
        model=model,
        out=out,
        data=DataOptions(data=str(joined), max_length=256),
        lora=LoraOptions(targets=("attention", "mlp", "shared_experts", "experts"), rank=16),
        train=TrainOptions(
            steps=sizes.updates, rows=sizes.rows, learning_rate=5e-4, final_share=0.02, recompute=False
        ),
    )
    trainer, _ = open_run(run, lambda _: None)
    trainer.run()
    return out


def report(name: str, session: macmoe.Session, exams: list[Path], limit: int) -> None:
    """Print a row of the table."""
    results = []
    for path in exams:
        records = read_dataset(str(path)).records
        results += examine(session, records, MODES, EXACT, max_tokens=MAX_TOKENS, batch=limit).values()
    cells = [result.correct or 0.0 for result in results] + [min(result.followed for result in results)]
    print(f"| {name} |" + "|".join(f" {cell:.1%} " for cell in cells) + "|", flush=True)


def teach(model: str, sizes: Sizes, folder: Path) -> None:
    """Run all steps in a folder and print the table."""
    begin = time.monotonic()
    session = macmoe.load(model)
    worked = write(folder / "worked.jsonl", islice(new_questions("worked", held_out=False), sizes.worked))
    asked = write(folder / "asked.jsonl", islice(new_questions("asked", held_out=False), sizes.asked))
    exams = [
        write(folder / "exam_new.jsonl", islice(new_questions("exam", held_out=True), sizes.exam)),
        write(folder / "exam_old.jsonl", islice(old_questions("exam", held_out=True), sizes.exam)),
    ]
    replayed = [replay(session, *modes, folder) for modes in zip(MODES, sizes.replayed, strict=True)]
    first = train(model, worked, replayed, folder / "first", sizes)
    session.use_adapter(first)
    sampled = DistillOptions(
        block=100, max_tokens=MAX_TOKENS, sampling=SamplingOptions(temperature=0.8, seed=0)
    )
    distilled = ask(session, asked, folder / "distilled.jsonl", sampled)
    second = train(model, distilled, replayed, folder / "second", sizes)
    minutes = (time.monotonic() - begin) / 60
    print("| |" + "|".join(f" {column} " for column in COLUMNS) + "|\n|---|" + "---:|" * len(COLUMNS))
    for name, adapter in {"before": None, "worked examples": first, "distilled": second}.items():
        session.use_adapter(adapter)
        report(name, session, exams, sizes.exam)
    print(f"{minutes:.1f} minutes without the exams")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny:qwen3")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        teach(arguments.model, FULL if arguments.full else QUICK, Path(name))
