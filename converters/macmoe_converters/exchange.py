"""A choice of packings, improved by measuring whole models: what one matrix gives up, another gets.

`sensitivity` measures matrices one by one and adds their effects up. Errors of many matrices do more, or
less, than the sum, and coarse packings more than finer ones foretell. So two choices that keep the budget are
tried as whole models: what the effects say, and the same packing everywhere. The better one is changed by
moves: a matrix gets its next finer packing, others get coarser ones to pay for it. All moves are measured
singly, then tried in the order of what they promise, and kept if the whole model comes closer to what it was.

The distance is the mean over passages of KL, in units of that of the first choice: texts of which a model is
sure, where all divergences are small, count as much as others. docs/decisions/0012 has reasons and figures.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import cast

import mlx.core as mx

from macmoe.checkpoint import WeightSource
from macmoe.config import Quantization
from macmoe.families import Model
from macmoe.scoring import divergence
from macmoe_converters.quantizing import pack, unpack
from macmoe_converters.sensitivity import (
    CANDIDATES,
    PREDICTION,
    TINY,
    Loaded,
    Option,
    Options,
    Passage,
    allocate,
    hull,
    limits,
    measure,
)

SWEEPS = 3  # of measuring all moves; later ones find little
UNIFORM = tuple(how for how in CANDIDATES if how.mode == "affine")

Choice = dict[str, Option]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Another option for one matrix.

    Attributes:
        path: The matrix.
        option: What it gets.
        bits: What that takes more, or less if negative.
        cost: By how much the model's distance to what it was changes.
    """

    path: str
    option: Option
    bits: float
    cost: float

    @property
    def price(self) -> float:
        """Cost per bit: for finer packings the less the better, for coarser ones the more the worse."""
        return self.cost / abs(self.bits)


class Joint:
    """A model with packings chosen for all of its matrices, as it would be written.

    Attributes:
        chosen: The option of every matrix.
        cost: Mean over the passages of KL(model || packed model), in units of what it was at first.
    """

    def __init__(self, loaded: Loaded, passages: Sequence[Passage]) -> None:
        self._loaded, self._passages = loaded, passages
        self._expected = loaded.predictions(passages)
        mx.eval(self._expected)
        self._units: list[float] = []
        self.chosen: Choice = {}
        self.cost = 0.0

    def put(self, changes: Mapping[str, Option], *, cost: float | None = None) -> None:
        """Give matrices other options, and measure, unless the cost is known."""
        for path, option in changes.items():
            if self.chosen.get(path) is not option:
                self._install(path, option.how)
        self.chosen |= changes
        self.cost = self._measure() if cost is None else cost

    def _install(self, path: str, how: Quantization | None) -> None:
        if how is None:
            self._loaded.restore([path])
            return
        parts = pack(self._loaded.values(path), how, scale_type=self._loaded.scale_type)
        self._loaded.exchange(path, unpack(parts, how))

    def _measure(self) -> float:
        found = divergence(self._expected, self._loaded.predictions(self._passages))
        lengths = [len(each.tokens) - each.begin for each in self._passages]
        pieces = mx.split(found, list(accumulate(lengths))[:-1])
        means = [cast("float", piece.mean().item()) for piece in pieces]
        self._units = self._units or [max(mean, TINY) for mean in means]
        return fmean(mean / unit for mean, unit in zip(means, self._units, strict=True))


def uniform(options: Options, budget: float) -> Choice | None:
    """Return the finest affine packing, everywhere, that keeps the budget; what is smaller stays as it is."""
    for how in sorted(UNIFORM, key=lambda how: -how.bits_per_weight):
        choice = {path: _at(some, how) for path, some in options.items()}
        if _bits(choice) <= budget:
            return choice
    return None


def _at(options: Sequence[Option], how: Quantization) -> Option:
    """Return the finest affine option that is no finer than a packing, or the matrix as it is."""
    fitting = [
        each
        for each in options
        if each.how and each.how.mode == "affine" and each.how.bits_per_weight <= how.bits_per_weight
    ]
    return max(fitting, key=lambda each: each.bits, default=options[0])


def _bits(choice: Mapping[str, Option]) -> float:
    return math.fsum(option.bits for option in choice.values())


def _neighbors(points: Sequence[Option], option: Option) -> Iterator[Option]:
    """Yield the next coarser and the next finer option."""
    coarser = [each for each in points if each.bits < option.bits]
    finer = [each for each in points if each.bits > option.bits]
    yield from (*coarser[-1:], *finer[:1])


def _moves(joint: Joint, points: Mapping[str, Sequence[Option]], step: Callable[[], None]) -> list[Move]:
    """Measure every move from where the model stands."""
    moves, before = [], joint.cost
    for path, some in points.items():
        own = joint.chosen[path]
        for option in _neighbors(some, own):
            joint.put({path: option})
            moves.append(
                Move(path=path, option=option, bits=option.bits - own.bits, cost=joint.cost - before)
            )
        joint.put({path: own}, cost=before)
        step()
    return moves


def _paid(move: Move, moves: Sequence[Move], room: float) -> list[Move] | None:
    """Return a move and coarser packings that pay for it, the cheapest first; None: it is not worth it."""
    found, room = [move], room - move.bits
    for other in sorted((each for each in moves if each.bits < 0), key=lambda each: each.price):
        if room >= 0:
            break
        if other.path != move.path:
            found.append(other)
            room -= other.bits
    worth = room >= 0 and math.fsum(each.cost for each in found) < 0
    return found if worth else None


def _sweep(
    joint: Joint, points: Mapping[str, Sequence[Option]], budget: float, step: Callable[[], None]
) -> bool:
    """Measure all moves and make those that help; return whether any did."""
    moves, helped = _moves(joint, points, step), False
    touched: set[str] = set()
    for move in sorted((each for each in moves if each.cost < 0), key=lambda each: each.price):
        free = [each for each in moves if each.path not in touched]
        together = _paid(move, free, budget - _bits(joint.chosen)) if move.path not in touched else None
        if together is None:
            continue
        before, cost = {each.path: joint.chosen[each.path] for each in together}, joint.cost
        joint.put({each.path: each.option for each in together})
        if joint.cost < cost:
            touched |= before.keys()
            helped = True
        else:
            joint.put(before, cost=cost)
    return helped


def improve(
    joint: Joint, options: Options, starts: Sequence[Choice], budget: float, step: Callable[[], None]
) -> Choice:
    """Return the best choice found, beginning with the best of some that keep the budget."""
    measured: list[tuple[float, Choice]] = []
    for start in starts:
        joint.put(start)
        measured.append((joint.cost, start))
    cost, best = min(measured, key=lambda pair: pair[0])
    joint.put(best, cost=cost)
    points = {path: hull(some) for path, some in options.items() if not path.startswith(PREDICTION)}
    for _ in range(SWEEPS):
        if not _sweep(joint, points, budget, step):
            break
    return joint.chosen


def choose(
    model: Model,
    source: WeightSource,
    passages: Sequence[Passage],
    bits_per_weight: float,
    progress: Progress | None = None,
) -> dict[str, Quantization]:
    """Return packings with which a model takes so many bits per weight, everything that is stored counted.

    Args:
        model: The model, as it is.
        source: Where its weights come from: how they are stored.
        passages: A calibration text, best one as the model will write.
        bits_per_weight: The budget.
        progress: Called with the matrices measured so far and in all.

    Raises:
        UsageError: The budget is too small.
    """
    loaded, done = Loaded.of(model, source), 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, (1 + SWEEPS) * len(loaded.plain))

    return choose_from(loaded, source, passages, measure(loaded, passages, step), bits_per_weight, step=step)


def choose_from(
    loaded: Loaded,
    source: WeightSource,
    passages: Sequence[Passage],
    measured: Options,
    bits_per_weight: float,
    *,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Quantization]:
    """Do what `choose` does with effects that were measured already."""
    options, budget = limits(source, measured, bits_per_weight)
    starts = (allocate(options, budget), uniform(options, budget))
    chosen = improve(Joint(loaded, passages), options, [start for start in starts if start], budget, step)
    loaded.restore(loaded.plain)
    return {path: option.how for path, option in chosen.items() if option.how}
