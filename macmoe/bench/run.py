"""A whole run for one model: which cases, on which sides, and what is reported of them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import mlx.core as mx

from macmoe.bench.counting import Kernels
from macmoe.bench.measure import (
    DECODE,
    WARM_UP,
    WARM_UP_PASSES,
    Case,
    Plan,
    Times,
    batch_case,
    decode_case,
    prefill_case,
    random_prompt,
    verify_case,
)
from macmoe.bench.peer import peer_model
from macmoe.bench.sides import Ours, Peer, Side
from macmoe.bench.traffic import bandwidth, token_bytes, weight_bytes
from macmoe.bench.weights import random_model, shortened
from macmoe.errors import UsageError
from macmoe.families import Model
from macmoe.version import __version__

OURS, PEER = "macmoe", "mlx-lm"
USUAL_CONTEXTS, USUAL_PROMPTS = (512,), (2_048,)
SIZES = ("contexts", "prompts", "drafts", "batches")  # of `Work`: what there may be several cases of


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        name: What to call it.
        model: With its weights.
        config: Its configuration as the hub spells it.
        cache_bits: Of macmoe's cache; None for the model's type.
    """

    name: str
    model: Model
    config: Mapping[str, Any]
    cache_bits: int | None = None

    @classmethod
    def drawn(
        cls,
        name: str,
        config: Mapping[str, Any],
        layers: int | None = None,
        cache_bits: int | None = None,
    ) -> Subject:
        """Draw random weights for a published configuration.

        Raises:
            UsageError: The model does not have so many layers.
        """
        cut = shortened(config, layers)
        return cls(name=name, model=random_model(cut), config=cut, cache_bits=cache_bits)

    def sides(self, *, against_peer: bool) -> dict[str, Side]:
        """Return the sides of a comparison, macmoe first.

        Raises:
            UsageError: mlx-lm is not installed, or cannot hold these weights.
        """
        sides: dict[str, Side] = {OURS: Ours(self.model, self.cache_bits)}
        if against_peer:
            sides[PEER] = Peer(peer_model(self.model, self.config), self.model)
        return sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Which cases to measure.

    Attributes:
        contexts: Tokens in the cache when decoding.
        prompts: Tokens of the prompts to read.
        drafts: Tokens of the drafts to verify, after the first of the contexts or the usual one.
        batches: Sequences to decode at once, after as many tokens.
        plan: How.
    """

    contexts: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    drafts: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    plan: Plan = field(default_factory=Plan)

    @classmethod
    def asked(cls, **asked: Any) -> Work:
        """Return the cases asked for; where none is, decoding and a prompt."""
        work = cls(**asked)
        return work if work.cases else replace(work, contexts=USUAL_CONTEXTS, prompts=USUAL_PROMPTS)

    @property
    def cases(self) -> int:
        """How many there are."""
        return sum(len(getattr(self, name)) for name in SIZES)

    @property
    def after(self) -> int:
        """Tokens in the cache before the first draft, or of each sequence of a batch."""
        return (self.contexts or USUAL_CONTEXTS)[0]

    def check_fits(self, name: str, known: int) -> None:
        """Refuse cases that are too long for a model.

        Args:
            name: Of the model.
            known: How many positions it knows.

        Raises:
            UsageError: A case needs more positions.
        """
        if self.positions > known:
            raise UsageError(
                f"the longest case needs {self.positions:,} positions, what is decoded included, and {name} "
                f"knows {known:,}; ask for fewer tokens"
            )

    @property
    def positions(self) -> int:
        """How many positions the longest case needs."""
        decoded = [context + WARM_UP + self.plan.tokens + 1 for context in self.contexts]
        passes = WARM_UP_PASSES + self.plan.passes
        read = [self.after + tokens * passes for tokens in (*self.drafts, *(1 for _ in self.batches))]
        return max((*decoded, *self.prompts, *read))


@dataclass(slots=True, kw_only=True)
class Report:
    """What came out.

    Attributes:
        name: Of the model.
        layers: How many of its layers were measured.
        weight_bytes: Bytes of all weights.
        token_bytes: By context: bytes that a token reads.
        bandwidth: Bytes per second that a copy in memory moves on this device, read and written.
        cache_bits: Of macmoe's cache; None for the model's type.
        uses_kernels: Whether macmoe decodes with its kernels here.
        kernels: Kernels of one token, by side.
        cases: Those that are done.
    """

    name: str
    layers: int
    weight_bytes: int
    token_bytes: dict[int, int]
    bandwidth: float
    cache_bits: int | None
    uses_kernels: bool
    kernels: dict[str, Kernels]
    cases: list[Case] = field(default_factory=list)

    def transient_bytes(self, times: Times) -> int | None:
        """Return how much memory a side held at most beyond its weights and its cache; None: not measured."""
        if not times.peak_bytes:
            return None
        return times.peak_bytes - self.weight_bytes - times.cache_bytes

    def limit(self, context: int) -> float:
        """Return the tokens per second at which reading alone would fill the time."""
        return self.bandwidth / self.token_bytes[context]

    def to_json(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "model": self.name,
            "layers": self.layers,
            "device": device_name(),
            "versions": versions(),
            "weight_bytes": self.weight_bytes,
            "bandwidth_bytes_per_second": self.bandwidth,
            "cache_bits": self.cache_bits,
            "uses_kernels": self.uses_kernels,
            "kernels": {name: asdict(kernels) for name, kernels in self.kernels.items()},
            "cases": [self._case(case) for case in self.cases],
        }

    def _case(self, case: Case) -> dict[str, Any]:
        figures = case.to_json()
        figures["ratio"] = case.ratio(OURS, PEER)
        for name, times in case.sides.items():
            figures["sides"][name]["transient_bytes"] = self.transient_bytes(times)
        if case.size not in self.token_bytes or case.kind != DECODE:
            return figures
        limit = self.limit(case.size)
        shares = {name: times.rate / limit for name, times in case.sides.items() if times.rate}
        return figures | {
            "token_bytes": self.token_bytes[case.size],
            "limit_rate": limit,
            "share_of_limit": shares,
        }


def device_name() -> str:
    """Return what MLX calls the device."""
    return str(mx.device_info().get("device_name", mx.default_device()))


def versions() -> dict[str, str]:
    """Return the versions of what was measured."""
    return {"macmoe": __version__} | {name: _version(name) for name in ("mlx", PEER)}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def run(
    subject: Subject, sides: Mapping[str, Side], work: Work, *, done: Callable[[Report], None] | None = None
) -> Report:
    """Measure every case; one that fails or takes too long is reported as such, and the others go on.

    Args:
        subject: The model.
        sides: macmoe, and mlx-lm if it takes part.
        work: The cases.
        done: Called after each case.
    """
    model = subject.model
    ours = sides[OURS]
    assert isinstance(ours, Ours)
    report = Report(
        name=subject.name,
        layers=len(model.model.layers),
        weight_bytes=weight_bytes(model),
        token_bytes={context: token_bytes(model, context, subject.cache_bits) for context in work.contexts},
        bandwidth=bandwidth(),
        cache_bits=subject.cache_bits,
        uses_kernels=ours.uses_kernels,
        kernels={name: side.kernels() for name, side in sides.items()},
    )
    for case in _cases(model.config.vocab_size, sides, work):
        report.cases.append(case)
        if done is not None:
            done(report)
    return report


def _cases(vocab: int, sides: Mapping[str, Side], work: Work) -> Iterator[Case]:
    """Yield the cases, each when it is measured."""
    plan = work.plan
    for context in work.contexts:
        yield decode_case(sides, context, plan)
    for tokens in work.prompts:
        yield prefill_case(sides, random_prompt(vocab, tokens), plan)
    for tokens in work.drafts:
        yield verify_case(sides, vocab, work.after, tokens, plan)
    for sequences in work.batches:
        yield batch_case(sides, vocab, work.after, sequences, plan)
