"""What every recipe costs the built-in models: bits per weight, divergence, held-out answers.

    PYTHONPATH=. .venv/bin/python tests/bench/quantization.py [--questions 40] [model ...]

Prints a Markdown table. The divergence is the mean KL(unpacked || packed) in nats per token of the unpacked
model's workings and answers to held-out questions; accuracy is that of greedy answers, with thinking. Packed
weights are decoded to float32 before they are used, which changes no value and is fast on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

import macmoe
from macmoe.chat.format import Thinking
from macmoe.chat.messages import Message
from macmoe.checkpoint import load_weights
from macmoe.cli.quality import own_words
from macmoe.config import Quantization
from macmoe.families import Model, family_of
from macmoe.generate import generate
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.scoring import compare
from macmoe.session import Session
from macmoe_converters import KEEP, RECIPES, Conversion, open_conversion
from macmoe_converters.exchange import choose_from
from macmoe_converters.learned import learn
from macmoe_converters.packing import decode
from macmoe_converters.recipes import LEARNED, affine, allows, suitable
from macmoe_converters.sensitivity import Loaded, Passage, measure
from tests.assets.questions import Question, questions, read_answer

HUB = Path(__file__).parents[1] / "assets" / "hub"
MODELS: dict[str, tuple[str, Thinking]] = {
    "qwen3": ("tiny:qwen3", "on"),
    "gpt_oss": ("tiny:gpt-oss", "medium"),
    "deepseek_v3": ("tiny:deepseek-v3", "on"),
}
BUDGETS = (4.5, 4.0)
CONVERSATIONS = 20
MAX_TOKENS = 320


def plain_model(conversion: Conversion) -> Model:
    """Build a model with the values of a conversion, nothing packed."""
    config = {key: value for key, value in conversion.config.items() if key != "quantization"}
    model = family_of(config).build(config)
    for parameter in conversion.parameters:
        values = decode(parameter.tensor, "").weight.array().astype(mx.float32)
        model.load_weights([(parameter.name, values)], strict=False)
    mx.eval(model.parameters())
    return model


def conversations(model: Model, session: Session, thinking: Thinking) -> Iterator[Passage]:
    """Yield held-out questions with the model's greedy workings and answers; only these count."""
    stops = session.format.stop_ids(session.tokenizer) | session.defaults.stop_ids
    for question in itertools.islice(questions("divergence", held_out=True), CONVERSATIONS):
        segments = session.format.render([Message("user", question.text)], thinking=thinking)
        prompt = session.tokenizer.encode_segments(segments)
        answer = generate(model, prompt, Sampler(SamplingOptions()), max_tokens=MAX_TOKENS, stop_ids=stops)
        yield Passage(tokens=[*prompt, *(token.id for token in answer)], begin=len(prompt) - 1)


def divergence(model: Model, other: Model, passages: list[Passage]) -> float:
    """Return the mean divergence of two models."""
    found = [
        value for each in passages for value in compare(model, other, each.tokens).divergences[each.begin :]
    ]
    return math.fsum(found) / len(found)


def accuracy(
    model: Model, session: Session, thinking: Thinking, asked: list[Question], cache_bits: int | None = None
) -> float:
    """Answer questions greedily, all at once; return the share of right answers."""
    prompts = [
        session.tokenizer.encode_segments(
            session.format.render([Message("user", question.text)], thinking=thinking)
        )
        for question in asked
    ]
    stops = list(session.format.stop_ids(session.tokenizer) | session.defaults.stop_ids)
    longest = max(map(len, prompts))
    tokens = mx.array([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    cache = model.make_cache([longest - len(prompt) for prompt in prompts], cache_bits)
    columns: list[np.ndarray] = []
    waiting = np.ones(len(prompts), bool)
    while waiting.any() and len(columns) < MAX_TOKENS:
        tokens = model.logits(model.hidden(tokens, cache)[:, -1:]).argmax(-1)
        columns.append(np.array(tokens[:, 0]))
        waiting &= ~np.isin(columns[-1], stops)
    answers = [
        list(itertools.takewhile(lambda token: token not in stops, row))
        for row in np.stack(columns, 1).tolist()
    ]
    replies = [read_answer(session.tokenizer.decode(answer)) for answer in answers]
    return float(np.mean([reply == q.answer for reply, q in zip(replies, asked, strict=True)]))


def bits(conversion: Conversion) -> float:
    """Return the stored bits per weight."""
    return 8 * sum(info.nbytes for info in conversion.infos.values()) / conversion.weights


def taught(folder: Path, session: Session, recipe: str) -> Conversion:
    """Open a checkpoint under a recipe whose scales are learned from what the model writes itself."""
    packed = open_conversion(folder, recipe=LEARNED[recipe])
    student = family_of(packed.config).build(packed.config)
    load_weights(student, packed)
    passages = [each.tokens for each in own_words(session)]
    return open_conversion(folder, recipe=recipe, learned=learn(session.model, student, passages))


def all_in_four_bits(conversion: Conversion) -> tuple[Model, float]:
    """Return a model as mx.quantize packs it, every matrix affine in 4 bits, and its bits per weight."""
    model, stored = plain_model(conversion), 0
    for parameter in conversion.parameters:
        values = decode(parameter.tensor, "").weight.array().astype(mx.float32)
        path, _, part = parameter.name.rpartition(".")
        matrix = part == "weight" and values.ndim > 1 and allows(path)
        how = suitable(affine(4), values.shape[-1]) if matrix else None
        if how is None:
            stored += 2 * values.size
            continue
        weight, *others = mx.quantize(values.astype(mx.bfloat16), group_size=how.group_size, bits=how.bits)
        stored += weight.nbytes + sum(array.nbytes for array in others)
        wide = [array.astype(mx.float32) for array in others]
        values = mx.dequantize(weight, *wide, group_size=how.group_size, bits=how.bits)
        model.load_weights([(parameter.name, values)], strict=False)
    return model, 8 * stored / conversion.weights


def conversions(folder: Path, session: Session) -> Iterator[Conversion]:
    """Open a checkpoint under every recipe, and within budgets."""
    for recipe in RECIPES:
        yield open_conversion(folder, recipe=recipe)
    for recipe in LEARNED:
        yield taught(folder, session, recipe)
    kept = open_conversion(folder)
    calibration, loaded = own_words(session), Loaded.of(session.model, kept)
    measured = measure(loaded, calibration)
    four = bits(open_conversion(folder, recipe="4bit"))
    for budget in sorted({*BUDGETS, math.floor(1000 * four) / 1000}, reverse=True):
        packings: Mapping[str, Quantization] = choose_from(loaded, kept, calibration, measured, budget)
        yield open_conversion(folder, recipe=f"--bits-per-weight {budget:g}", packings=packings)


def rows(name: str, asked: list[Question]) -> Iterator[str]:
    """Yield the table's rows of one model."""
    built_in, thinking = MODELS[name]
    session = macmoe.load(built_in, dtype="float32")
    reference = plain_model(open_conversion(HUB / name))
    texts = list(conversations(reference, session, thinking))
    for conversion in conversions(HUB / name, session):
        model = plain_model(conversion)
        loss = divergence(reference, model, texts) if conversion.recipe != KEEP else 0.0
        right = accuracy(model, session, thinking, asked)
        yield f"| {name} | {conversion.recipe} | {bits(conversion):.2f} | {loss:.2g} | {right:.0%} |"
    model, size = all_in_four_bits(open_conversion(HUB / name))
    loss, right = divergence(reference, model, texts), accuracy(model, session, thinking, asked)
    yield f"| {name} | affine 4, every matrix | {size:.2f} | {loss:.2g} | {right:.0%} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="model")
    parser.add_argument("--questions", type=int, default=40)
    given = parser.parse_args()
    drawn = list(itertools.islice(questions("accuracy", held_out=True), given.questions))
    print("| model | recipe | bits per weight | KL | accuracy |\n|---|---|---|---|---|")
    for each in given.models:
        for row in rows(each, drawn):
            print(row, flush=True)
