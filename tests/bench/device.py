"""Check that the built-in models write on this machine's GPU what they write on its CPU.

    python tests/bench/device.py [--questions 60] [--dtype float32] [--models tiny:qwen3 ...]

Every question is answered greedily on both, on the GPU by itself and in a padded batch of all. In float32 the
tokens should be the same but for near ties; a wrong kernel shows in the accuracy.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import mlx.core as mx

import macmoe
from macmoe.chat.messages import Message
from macmoe.generate import generate
from macmoe.location import BUILT_IN
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.tuning.replies import generate_batch
from tests.assets.questions import Question, exam, read_answer

MAX_TOKENS = 200

Way = Callable[[macmoe.Session, list[Question]], list[list[int]]]


def prompts_of(session: macmoe.Session, questions: list[Question]) -> list[list[int]]:
    """Return the questions as prompts."""
    rendered = [
        session.format.render([Message("user", question.text)], thinking="on") for question in questions
    ]
    return [session.tokenizer.encode_segments(segments) for segments in rendered]


def one_by_one(session: macmoe.Session, questions: list[Question]) -> list[list[int]]:
    """Answer each question by itself."""
    stops = session.format.stop_ids(session.tokenizer)
    written = []
    for prompt in prompts_of(session, questions):
        tokens = generate(
            session.model, prompt, Sampler(SamplingOptions()), max_tokens=MAX_TOKENS, stop_ids=stops
        )
        written.append([token.id for token in tokens])
    return written


def together(session: macmoe.Session, questions: list[Question]) -> list[list[int]]:
    """Answer all questions in one padded batch."""
    return generate_batch(
        session.model,
        prompts_of(session, questions),
        Sampler(SamplingOptions()),
        max_tokens=MAX_TOKENS,
        stop_ids=session.format.stop_ids(session.tokenizer),
    )


def answers(
    name: str, dtype: str, device: mx.DeviceType, questions: list[Question], way: Way
) -> list[list[int]]:
    """Answer the questions with a built-in model on one device."""
    mx.set_default_device(mx.Device(device))
    return way(macmoe.load(name, dtype), questions)


def main() -> None:
    """Compare the devices on every built-in model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--dtype", default="float32", help="on the GPU; the CPU computes in float32")
    parser.add_argument("--models", nargs="+", default=[*BUILT_IN], choices=[*BUILT_IN], metavar="MODEL")
    options = parser.parse_args()
    questions = exam("device", options.questions)
    print("| model | right on the CPU | right on the GPU | same tokens | same in a batch |")
    print("|---|---|---|---|---|")
    for name in options.models:
        tokenizer = macmoe.load(name, "float32").tokenizer
        reference = answers(name, "float32", mx.cpu, questions, one_by_one)
        on_gpu = [answers(name, options.dtype, mx.gpu, questions, way) for way in (one_by_one, together)]
        right = [
            sum(
                read_answer(tokenizer.decode(answer)) == question.answer
                for answer, question in zip(side, questions, strict=True)
            )
            for side in (reference, on_gpu[0])
        ]
        same = [sum(itertools.starmap(list.__eq__, zip(reference, side, strict=True))) for side in on_gpu]
        print(f"| {name} | {right[0]} | {right[1]} | {same[0]} | {same[1]} of {len(questions)} |", flush=True)


if __name__ == "__main__":
    main()
