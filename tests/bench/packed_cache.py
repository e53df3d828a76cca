"""What an 8-bit cache costs the built-in models: divergence and held-out answers.

    PYTHONPATH=. .venv/bin/python tests/bench/packed_cache.py [--questions 40] [model ...]

Prints a Markdown table. The divergence is KL(full precision || packed) in nats per token of the model's
workings and answers to held-out questions, mean and largest; accuracy is that of greedy answers, with
thinking. Of latent attention the two parts of a row are also packed one at a time. All else is float32.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial

import mlx.core as mx

import macmoe
from macmoe.families import Model
from macmoe.nn.cache import FullCache, ModelCache
from macmoe.nn.packed_cache import BITS, group_size
from macmoe.sampling import log_probabilities
from macmoe.scoring import divergence
from macmoe_converters.sensitivity import Passage
from tests.assets.questions import questions
from tests.bench.quantization import MODELS, accuracy, conversations


class PartlyPacked(FullCache):
    """A latent cache of which some columns go through 8 bits."""

    def __init__(self, latent: int, packed: Sequence[bool]) -> None:
        super().__init__()
        self.latent = latent
        self.packed = packed

    def update(self, *new: mx.array) -> tuple[mx.array, ...]:
        """Append the rows, what is packed as it comes back."""
        parts = mx.split(new[0], [self.latent], axis=-1)
        group = group_size(new[0].shape[-1], BITS)
        through = [
            mx.dequantize(*mx.quantize(part, group, BITS), group_size=group, bits=BITS) if packed else part
            for part, packed in zip(parts, self.packed, strict=True)
        ]
        return super().update(mx.concatenate(through, axis=-1))


def divergences(model: Model, cache: ModelCache, passage: Passage) -> list[float]:
    """Return what every token that the model wrote loses by a cache."""
    tokens = mx.array([list(passage.tokens)])
    full, packed = (
        log_probabilities(model(tokens, each))[0, passage.begin : -1] for each in (model.make_cache(), cache)
    )
    found: list[float] = divergence(full, packed).tolist()
    return found


def rows(name: str, count: int) -> Iterator[str]:
    """Yield the table's rows of one model."""
    built_in, thinking = MODELS[name]
    session = macmoe.load(built_in, dtype="float32")
    model = session.model
    texts = list(conversations(model, session, thinking))
    caches = {"8 bits": partial(model.make_cache, bits=BITS)}
    if name == "deepseek_v3":
        latent, layers = model.config.kv_lora_rank, len(model.model.layers)
        for words, packed in (("latent part", (True, False)), ("rotary part", (False, True))):
            caches[f"{words} in 8 bits"] = lambda packed=packed: ModelCache(
                [PartlyPacked(latent, packed) for _ in range(layers)]
            )
    asked = list(itertools.islice(questions("accuracy", held_out=True), count))
    right = {bits: accuracy(model, session, thinking, asked, bits) for bits in (None, BITS)}
    yield f"| {name} | full precision | 0 | 0 | {right[None]:.0%} |"
    for words, cache in caches.items():
        found = [value for text in texts for value in divergences(model, cache(), text)]
        share = f"{right[BITS]:.0%}" if words == "8 bits" else "-"
        yield f"| {name} | {words} | {math.fsum(found) / len(found):.1e} | {max(found):.1e} | {share} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="model")
    parser.add_argument("--questions", type=int, default=40)
    given = parser.parse_args()
    print("| model | cache | mean KL | largest KL | right |\n|---|---|---|---|---|")
    for each in given.models:
        for row in rows(each, given.questions):
            print(row, flush=True)
