"""`macmoe score`: how probable a model finds a text, and how far another model differs."""

from __future__ import annotations

import json
from typing import TextIO

import click

from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.options import no_kernels_option
from macmoe.cli.terminal import read_text, table
from macmoe.errors import UsageError
from macmoe.scoring import Comparison, Score, compare, score


@click.command()
@click.argument("model_name", metavar="MODEL")
@click.argument("text", required=False)
@click.option(
    "--tokens",
    "tokens_file",
    type=click.File(encoding="utf-8"),
    help="Score the token ids in this file instead.",
)
@click.option("--file", "text_file", type=click.File(encoding="utf-8"), help="Score the text in this file.")
@click.option("--against", "other_name", metavar="OTHER", help="Compare with this model on the same tokens.")
@no_kernels_option
@opening_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every token's log-probability.")
def command(
    *,
    model_name: str,
    text: str | None,
    tokens_file: TextIO | None,
    text_file: TextIO | None,
    other_name: str | None,
    as_json: bool,
) -> None:
    """Measure log-probabilities and perplexity of a text.

    TEXT is scored literally, without a chat format; `-` reads standard input. The first token is given, every
    other one is predicted from all before it.
    """
    if [text, text_file, tokens_file].count(None) != 2:
        raise click.UsageError("Give either TEXT, --file FILE or --tokens FILE.")
    session = open_session(model_name)
    if tokens_file:
        tokens = _parse(tokens_file)
    else:
        tokens = session.tokenizer.encode(_read(text_file) if text_file else read_text(text or ""))
    if other_name is None:
        scored = score(session.model, tokens)
        figures = _score_figures(scored)
    else:
        compared = compare(session.model, open_session(other_name, second=True).model, tokens)
        scored, figures = compared.score, _comparison_figures(compared)
    if as_json:
        click.echo(json.dumps({"tokens": tokens, "logprobs": scored.logprobs} | figures))
    else:
        rows = [(name.replace("_", " "), f"{figure:.6g}") for name, figure in figures.items()]
        click.echo(table([("tokens", f"{len(tokens):,}"), *rows]))


def _score_figures(scored: Score) -> dict[str, float]:
    return {"log_probability": scored.total, "perplexity": scored.perplexity}


def _comparison_figures(compared: Comparison) -> dict[str, float]:
    return {
        **_score_figures(compared.score),
        "other_perplexity": compared.other.perplexity,
        "perplexity_ratio": compared.perplexity_ratio,
        "mean_divergence": compared.mean_divergence,
        "largest_divergence": max(compared.divergences),
        "top_1_agreement": compared.agreement,
    }


def _read(file: TextIO) -> str:
    try:
        return file.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file.name}: is not UTF-8 ({error.reason} at byte {error.start})") from None


def _parse(file: TextIO) -> list[int]:
    """Read token ids: a JSON list, or numbers between spaces."""
    text = _read(file).strip()
    try:
        return [int(word) for word in text.removeprefix("[").removesuffix("]").replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(f"{file.name}: not a list of token ids ({error})") from None
