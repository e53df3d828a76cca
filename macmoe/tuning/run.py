"""A training run from its settings: model, data, adapters and trainer put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from macmoe.adapters.attach import apply, attach, select
from macmoe.chat.format import Thinking
from macmoe.chat.messages import Message
from macmoe.checkpoint import parameters_of
from macmoe.device import memory_limit
from macmoe.errors import UsageError
from macmoe.families import Family, Model
from macmoe.generate import Progress
from macmoe.prompt_cache import fingerprint
from macmoe.sampling import SamplingOptions
from macmoe.session import Session, load
from macmoe.tuning.config import RunOptions, TrainOptions
from macmoe.tuning.data import find_files
from macmoe.tuning.origin import begin_with, digest_of
from macmoe.tuning.plan import Estimate, Settings, check_fits
from macmoe.tuning.planned import open_planned
from macmoe.tuning.prepare import Prepared, prepare
from macmoe.tuning.records import Question
from macmoe.tuning.replies import ask
from macmoe.tuning.run_state import check_fresh, check_saved
from macmoe.tuning.trackers import libraries
from macmoe.tuning.train_data import TrainData
from macmoe.tuning.trainer import Trainer


def _settings(options: RunOptions) -> Settings:
    return Settings(
        lora=options.lora,
        train=options.train,
        row_length=options.data.row_length,
        fixed=options.adapter is not None,
    )


def empty_model(name: str, *, allow_unknown_keys: bool = False) -> tuple[Family, Model]:
    """Return a model with its shapes and packings; no weight is read or computed.

    Raises:
        MacmoeError: There is no such model, or it is unsupported or damaged.
    """
    planned = open_planned(name, allow_unknown_keys=allow_unknown_keys)
    return planned.family, planned.model


def plan_run(options: RunOptions, limit: int | None = None, *, allow_unknown_keys: bool = False) -> Estimate:
    """Say what a run would train and need, from the headers of the model's files, or from its shape alone.

    Raises:
        MemoryLimitError: It does not fit into `limit` bytes (None: into this machine).
        MacmoeError: Model or settings are invalid.
    """
    planned = open_planned(options.model, allow_unknown_keys=allow_unknown_keys)
    lora = begin_with(options, planned.model, planned.family.name)[0].lora
    settings = _settings(replace(options, lora=lora))
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    itemsize = 4 if on_cpu or planned.floats == {"F32"} else 2
    weights = sum(
        array.size * itemsize if array.dtype == mx.float32 else array.nbytes
        for array in parameters_of(planned.model).values()
    )
    return check_fits(planned.model, settings, weights, itemsize, memory_limit() if limit is None else limit)


def train_data(prepared: Prepared, row_length: int) -> TrainData:
    """Return a split as the trainer takes it."""
    lessons = prepared.taught.lessons
    return TrainData(
        samples=[lesson.sample for lesson in lessons],
        places=[str(lesson.place) for lesson in lessons],
        row_length=row_length,
    )


def answers_of(session: Session, options: TrainOptions) -> Callable[[], list[dict[str, Any]]] | None:
    """Return what answers the sample prompts with the most probable tokens, in each mode of the model.

    A model that has no choice of modes answers as it does without any.
    """
    if not options.sample_prompts:
        return None
    modes = [mode for mode in ("on", "off") if mode in session.format.settings] or [None]
    asked = [(prompt, mode) for mode in modes for prompt in options.sample_prompts]
    questions = [
        Question(messages=(Message("user", prompt),), thinking=cast("Thinking | None", mode))
        for prompt, mode in asked
    ]

    def answers() -> list[dict[str, Any]]:
        replies = ask(session, questions, SamplingOptions(), options.sample_tokens)
        return [
            {"prompt": prompt, "thinking": mode, **asdict(reply)}
            for (prompt, mode), reply in zip(asked, replies, strict=True)
        ]

    return answers


def check_run(options: RunOptions, *, resume: bool = False) -> None:
    """Refuse what can be told to fail before a model is opened: folders, trackers, data, patience.

    Args:
        options: The run.
        resume: Whether a run in the folder is to go on.

    Raises:
        CheckpointError: There is no run to go on with.
        DatasetError: There are no such data.
        UsageError: The folder is a file or holds a run, there is no adapter to begin with, a tracker is
            unknown or not installed, or `patience` has no validation data to wait for.
    """
    if options.out.exists() and not options.out.is_dir():
        raise UsageError(f"{options.out}: is a file, and a run needs a folder; choose another name")
    if options.adapter is not None and not options.adapter.is_dir():
        raise UsageError(f"{options.adapter}: no such folder, and the run is to begin with the adapter in it")
    if resume:
        check_saved(options.out)
    else:
        check_fresh(options.out)
    if mx.distributed.init().rank() == 0:  # the one that writes
        libraries(options.train.trackers)
    splits = find_files(options.data.data)
    if options.train.patience and "valid" not in splits and not options.data.valid_share:
        raise UsageError(
            "patience counts evaluations on validation data, and there are none, so it would do nothing; "
            "hold some out with valid_share, or leave patience out"
        )


def open_run(
    options: RunOptions,
    watch: Callable[[Mapping[str, Any]], None],
    *,
    resume: bool = False,
    allow_unknown_keys: bool = False,
    stage: Callable[[str], Progress | None] = lambda _: None,
) -> tuple[Trainer, list[str]]:
    """Load the model, read the data, put new adapters on the model, or the one to begin with.

    Args:
        options: The run.
        watch: Called with every line of the metrics.
        resume: Go on with the run in the folder, instead of refusing one before anything is loaded.
        allow_unknown_keys: Warn of unknown keys in the model's config.json instead of refusing them.
        stage: Gives the progress of a stage of opening the model: "converting", "loading".

    Returns:
        The trainer, and a line for everything in the data that is not learned.

    Raises:
        CheckpointError: There is no run to go on with, or it is damaged.
        UsageError: There is a run, or it was another one.
        MacmoeError: Model, data or settings are invalid.
    """
    check_run(options, resume=resume)
    session = load(
        options.model,
        progress=stage("converting"),
        loading=stage("loading"),
        allow_unknown_keys=allow_unknown_keys,
    )
    splits = prepare(options.data, session.format, session.tokenizer)
    length = options.data.row_length
    base = fingerprint(session.model)
    options, begun = begin_with(options, session.model, session.family.name)
    lora = options.lora
    if begun is None:
        specs = select(session.model, lora.targets, lora.spec, lora.overrides())
        adapters = attach(session.model, specs, options.train.seed)
    else:
        adapters = apply(session.model, begun)
    trainer = Trainer(
        session.model,
        adapters,
        options.train,
        train=train_data(splits["train"], length),
        valid=train_data(splits["valid"], length) if "valid" in splits else None,
        out=Path(options.out),
        family=session.family.name,
        base=base,
        watch=watch,
        answer=answers_of(session, options.train),
        origin=digest_of(begun) if begun else "",
    )
    if resume:
        trainer.resume()
    return trainer, [note for split in splits.values() for note in split.notes()]
