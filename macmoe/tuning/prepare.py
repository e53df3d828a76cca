"""From the name of a data set to samples: read, hold out, mix, flag, teach. Trainer and preview share it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from macmoe.chat import ChatFormat, format_for
from macmoe.chat.gpt_oss import HarmonyFormat
from macmoe.config import load_config
from macmoe.errors import UsageError
from macmoe.families import family_of
from macmoe.opening import model_files
from macmoe.tokenizer import Tokenizer
from macmoe.tuning.data import Dataset, find_files, hold_out, read_dataset
from macmoe.tuning.figures import Figures, describe
from macmoe.tuning.flags import check_reads_flags
from macmoe.tuning.forms import check_columns
from macmoe.tuning.fusion import add_flags, mix
from macmoe.tuning.masks import EmptyThinking, Lessons, Teacher
from macmoe.tuning.records import Record

DESCRIPTIONS = ("*.json", "*.jinja")  # of a model on the hub, all but the weights


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What is made of a data set.

    Attributes:
        data: A file, a folder or a hub id.
        max_length: The most tokens of a sample. Longer ones lose their oldest turns; those whose question and
            answer alone are longer are left out and counted.
        columns: Which columns are which fields of a row, where their names do not say it.
        skip_bad: Leave bad rows out and count them, instead of failing at the first.
        empty_thinking: "refuse" or "train": an answer without reasoning in a mode that thinks.
        thinking_share: Repeat records of the rarer mode until this share thinks; None leaves the mix.
        flag_share: Write `/think` and `/no_think` into this share of the conversations (Qwen3).
        valid_share: Hold this share out for validation, where the data set has no split for it.
        date: The current date in the prompts of GPT-OSS; fixed, so that a run can go on another day.
        seed: Decides repetitions and flags.
    """

    data: str
    columns: dict[str, str] = field(default_factory=dict)
    max_length: int = 2048
    skip_bad: bool = False
    empty_thinking: EmptyThinking = "refuse"
    thinking_share: float | None = None
    flag_share: float = 0.0
    valid_share: float = 0.0
    date: str = "2026-01-01"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values without sense."""
        check_columns(self.columns)
        if self.max_length < 2:
            raise UsageError(f"max_length is {self.max_length}; a sample needs two tokens or more")
        for name in ("flag_share", "valid_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it has to lie between 0 and 1")

    @property
    def row_length(self) -> int:
        """Places of a row of a batch."""
        return self.max_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The samples of one split.

    Attributes:
        taught: The samples, and what did not become one.
        source: What was read.
    """

    taught: Lessons
    source: Dataset

    @property
    def figures(self) -> Figures:
        """The samples in numbers."""
        return describe(self.taught, rejected=len(self.source.rejected))

    def notes(self) -> Iterator[str]:
        """Yield a line for everything in the data that is not learned."""
        figures = self.figures
        rejected = [*self.source.rejected, *self.taught.rejected]
        if rejected:
            yield f"{len(rejected)} bad rows left out, the first: {rejected[0]}"
        if self.taught.too_long:
            first = self.taught.too_long[0]
            yield f"{figures.too_long} answers left out, because their end would not fit, the first: {first}"
        if figures.shortened:
            yield f"{figures.shortened} samples without their oldest turns, which would not fit"
        yield from self.source.notes()


def open_format(model: str) -> tuple[ChatFormat, Tokenizer]:
    """Return the chat format and the tokenizer of a model, without its weights.

    Raises:
        MacmoeError: There is no such model, or it is no chat model.
    """
    folder = model_files(model, DESCRIPTIONS)
    family = family_of(load_config(folder), str(folder / "config.json"))
    tokenizer = Tokenizer.from_folder(folder)
    return format_for(family.name, tokenizer), tokenizer


def prepare(options: DataOptions, chat: ChatFormat, tokenizer: Tokenizer) -> dict[str, Prepared]:
    """Return the samples to learn ("train") and, where there are any, those to validate with ("valid").

    Raises:
        DatasetError: The data cannot be read, a row is bad, or nothing is left.
        UsageError: The options ask for what the model cannot do.
    """
    if options.flag_share:
        check_reads_flags(chat.model)
    teacher = Teacher(
        chat=replace(chat, date=options.date) if isinstance(chat, HarmonyFormat) else chat,
        tokenizer=tokenizer,
        max_length=options.max_length,
        empty_thinking=options.empty_thinking,
    )
    splits = _read(options)
    train, records = splits["train"]
    if options.thinking_share is not None:
        records = mix(records, options.thinking_share, options.seed)
    splits["train"] = (train, add_flags(records, options.flag_share, options.seed))
    return {
        split: Prepared(taught=teacher.teach(part, skip_bad=options.skip_bad), source=source)
        for split, (source, part) in splits.items()
    }


def _read(options: DataOptions) -> dict[str, tuple[Dataset, Sequence[Record]]]:
    """Return the data set and the records of each split."""
    read = functools.partial(read_dataset, options.data, skip_bad=options.skip_bad, columns=options.columns)
    train = read()
    if "valid" in find_files(options.data):
        valid = read("valid")
        return {"train": (train, train.records), "valid": (valid, valid.records)}
    if not options.valid_share:
        return {"train": (train, train.records)}
    learned, held_out = hold_out(train.records, options.valid_share)
    rest = Dataset(records=tuple(held_out), ignored=Counter(), rejected=(), unused=())
    return {"train": (train, learned), "valid": (rest, held_out)}
