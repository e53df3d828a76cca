"""The settings of a training run: frozen, checked, and readable from one TOML file.

model = "tiny:qwen3"
out = "adapters/sums"

[data]
data = "sums.jsonl"

[lora]
targets = ["attention", "experts"]
rank = 8

[lora.patterns."*.experts.*"]
rank = 2

[train]
epochs = 3
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import mlx.core as mx

from macmoe.adapters.attach import ROUTERS
from macmoe.adapters.lora import LoraSpec
from macmoe.config import nearest
from macmoe.errors import UsageError
from macmoe.paths import expand_home
from macmoe.sampling import SEEDS
from macmoe.tuning.forms import parse_columns
from macmoe.tuning.prepare import DataOptions

T = TypeVar("T")
OptimizerName = Literal["adamw", "lion", "muon"]
ScheduleName = Literal["cosine", "linear", "constant"]


# What an error calls the types of settings.
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraOptions:
    """What is adapted, and how.

    Attributes:
        targets: Names of `macmoe.adapters.attach.GROUPS`, or patterns of module paths. Routers stay frozen
            unless they are named.
        rank: Inner width of the adapters.
        alpha: Their strength; None: twice the rank.
        rslora: Divide alpha by the square root of the rank.
        dora: Learn the lengths of rows apart; only for plain linear layers.
        shared: Experts share the factor on the side of the residual stream.
        patterns: Other values of these for some matrices, by pattern of the path.
    """

    targets: tuple[str, ...] = ("attention", "mlp", "shared_experts")
    rank: int = 8
    alpha: float | None = None
    rslora: bool = False
    dora: bool = False
    shared: bool = False
    patterns: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> LoraSpec:
        """Rank and scale of what no pattern names."""
        alpha = 2.0 * self.rank if self.alpha is None else float(self.alpha)
        return LoraSpec(rank=self.rank, alpha=alpha, rslora=self.rslora, dora=self.dora, shared=self.shared)

    def overrides(self) -> dict[str, LoraSpec]:
        """Return the specs of the patterns; what a pattern leaves out is as for the others.

        Raises:
            UsageError: A pattern asks for something unknown.
        """
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "patterns"}
        return {
            pattern: _build(LoraOptions, plain | dict(values), f"lora.patterns.{pattern}").spec
            for pattern, values in self.patterns.items()
        }

    @property
    def trains_router(self) -> bool:
        """Whether a target names routers."""
        return any(target == "router" or _names_router(target) for target in self.targets)


# Of the numbers of `TrainOptions`: names, the least and what they have to stay below, and what an error says.
RANGES: tuple[tuple[tuple[str, ...], tuple[float, float], str], ...] = (
    (
        ("epochs", "steps", "rows", "accumulate", "save_every", "log_every", "sample_tokens"),
        (1, math.inf),
        "has to be 1 or more",
    ),
    (
        ("warmup", "weight_decay", "clip", "evaluate_every", "patience", "balance"),
        (0, math.inf),
        "cannot be negative or infinite",
    ),
    (("learning_rate",), (math.nextafter(0, 1), math.inf), "has to be above 0"),
    (("final_share",), (0, math.nextafter(1, 2)), "has to lie between 0 and 1"),
    (("seed",), (0, SEEDS), "has to be from 0 to 2**64 - 1"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How it is trained.

    Attributes:
        epochs: Times that every sample is seen.
        steps: Updates in all; None: as `epochs` says.
        rows: Rows of a batch.
        accumulate: Batches of an update.
        packed: Whether short samples share rows.
        learning_rate: The highest.
        schedule: How it falls after the warm-up.
        warmup: Updates until it is reached.
        final_share: What is left of it at the end.
        optimizer: The optimizer.
        weight_decay: Of the optimizer.
        clip: Largest norm of an update's gradient; 0: no limit.
        recompute: Compute layers again for the gradient instead of keeping activations.
        compile: Let MLX fuse the step's small operations; None: on a GPU.
        evaluate_every: Updates between two evaluations; 0: only at the end.
        save_every: Updates between two savings.
        log_every: Updates between two lines on losses, where no terminal shows a bar.
        patience: Stop after this many evaluations without a better one; 0: never.
        balance: Weight of the loss that keeps experts in use while routers are adapted
            (`macmoe.tuning.balance`); 0: none.
        sample_prompts: Questions that the model answers at every evaluation, in each of its modes.
        sample_tokens: The most tokens of such an answer.
        trackers: Where else metrics go: names of `macmoe.tuning.trackers.TRACKERS`.
        seed: Decides the first factors and the order of samples.
    """

    epochs: int = 1
    steps: int | None = None
    rows: int = 1
    accumulate: int = 1
    packed: bool = True
    learning_rate: float = 1e-4
    schedule: ScheduleName = "cosine"
    warmup: int = 10
    final_share: float = 0.1
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    recompute: bool = True
    compile: bool | None = None
    evaluate_every: int = 100
    save_every: int = 50
    log_every: int = 10
    patience: int = 0
    balance: float = 0.0
    sample_prompts: tuple[str, ...] = ()
    sample_tokens: int = 256
    trackers: tuple[str, ...] = ()
    seed: int = 0

    @property
    def compiled(self) -> bool:
        """Whether the step is compiled on this machine; on a CPU that takes longer than it saves."""
        return mx.default_device() == mx.Device(mx.gpu) if self.compile is None else self.compile

    def __post_init__(self) -> None:
        for names, (least, below), words in RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not least <= value < below:
                    raise UsageError(f"{name} is {value}; it {words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One run: which model learns what, and where the adapter goes.

    Attributes:
        model: The model.
        data: What is learned.
        out: The folder of the run.
        adapter: An adapter to begin with (macmoe, PEFT, mlx-lm); it says what is adapted, instead of `lora`.
        lora: What is adapted, and how.
        train: How it is trained.
    """

    model: str
    data: DataOptions
    adapter: Path | None = None
    out: Path = Path("adapter")
    lora: LoraOptions = LoraOptions()
    train: TrainOptions = TrainOptions()

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.train.balance and not (self.lora.trains_router or self.adapter):
            raise UsageError(
                "balance is the weight of a loss on routers, which stay frozen; add router to the targets"
            )


def _names_router(target: str) -> bool:
    return target in ROUTERS or any(fnmatchcase(target, router) for router in ROUTERS)


def read_run(
    file: Path | None, given: Mapping[str, Any], otherwise: Mapping[str, Any] | None = None
) -> RunOptions:
    """Read a TOML file and lay what was given otherwise over it.

    Args:
        file: The file; None for none.
        given: Further values, as in the file; None is no value.
        otherwise: What holds where neither has a value.

    Raises:
        UsageError: The file is missing or invalid, a name is unknown, a value has a wrong type or makes no
            sense.
    """
    data = _merged(_merged(otherwise or {}, _in_sections(_load(file)) if file else {}), _in_sections(given))
    return _build(RunOptions, data, str(file) if file else "options")


def _load(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except (tomllib.TOMLDecodeError, ValueError, OSError) as error:
        raise UsageError(f"{file}: cannot be read as TOML ({error})") from None


def _in_sections(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings in which `data`, if it is only a name, is a section, and `columns` no text."""
    data = settings.get("data")
    if isinstance(data, str):
        return {**settings, "data": {"data": data}}
    columns = data.get("columns") if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and isinstance(columns, str):
        return {**settings, "data": {**data, "columns": parse_columns(columns)}}
    return settings


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        under = merged.get(key, {})
        if isinstance(value, Mapping):
            merged[key] = (
                _merged(under, value) if isinstance(under, Mapping) else under
            )  # `_value` refuses it
        elif value is not None:
            merged[key] = value
    return merged


def _build(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of plain data, recursively."""
    hints = get_type_hints(kind)
    unknown = [name for name in data if name not in hints]
    if unknown:
        raise UsageError(f"{where}: unknown setting '{unknown[0]}'{nearest(unknown[0], list(hints))}")
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = [
        f.name
        for f in fields
        if f.name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{where}: '{missing[0]}' is missing; give --{missing[0]}")
    return kind(**{name: _value(value, hints[name], f"{where}: {name}") for name, value in data.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    """Check a value against a field's type; lists become tuples, text becomes paths."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if isinstance(value, list):
        value = tuple(value)
    if hint in (Path, Path | None) and isinstance(value, str):
        value = expand_home(value)
    kinds = (Mapping,) if get_origin(hint) is dict else get_args(hint) or (hint,)
    if not any(_is_a(value, kind) for kind in kinds) or (kinds == (str, ...) and _has_others(value)):
        raise UsageError(f"{where} is {value!r}; it has to be {_in_words(kinds)}")
    return value


def _in_words(kinds: tuple[Any, ...]) -> str:
    """Say what a value may be; a setting that may be left out is written with a value or not at all."""
    if kinds == (str, ...):
        return "a list of texts"
    if all(isinstance(kind, str) for kind in kinds):
        return f"one of these: {', '.join(kinds)}"
    return " or ".join(KINDS.get(kind, "a section of settings") for kind in kinds if kind is not type(None))


def _has_others(values: Any) -> bool:
    return not isinstance(values, tuple) or not all(isinstance(value, str) for value in values)


def _is_a(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type, or is the literal."""
    if isinstance(kind, str):
        return value == kind
    if kind in (..., Any):
        return isinstance(value, tuple | Mapping)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
