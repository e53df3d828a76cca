"""`macmoe score`: how probable a model finds a text, and how far another model differs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from macmoe.cli.loading import open_session, opening_options
from macmoe.cli.model import complete
from macmoe.cli.options import no_kernels_option
from macmoe.cli.paths import UserPath
from macmoe.cli.terminal import table
from macmoe.cli.texts import file_option, given_text, read_file, refuse_late_text
from macmoe.cli.unknown_keys import allow_unknown_keys_option
from macmoe.errors import UsageError
from macmoe.scoring import Comparison, Score, compare, score


@click.command()
@click.argument("model_name", metavar="MODEL", shell_complete=complete)
@click.argument("text", required=False)
@allow_unknown_keys_option
@click.option(
    "--tokens",
    "tokens_file",
    type=UserPath(dir_okay=False, allow_dash=True),
    help="Score the token ids in this file instead of a text.",
)
@file_option("Score the text in this file; repeatable.")
@click.option(
    "--against",
    "other_name",
    metavar="OTHER",
    shell_complete=complete,
    help="Compare with this model on the same tokens.",
)
@no_kernels_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the log-probability of every token.")
@opening_options
def command(
    *,
    model_name: str,
    text: str | None,
    tokens_file: Path | None,
    files: tuple[Path, ...],
    other_name: str | None,
    as_json: bool,
) -> None:
    """Measure log-probabilities and perplexity of a text.

    TEXT is scored as it is, without a chat template. Text piped in is appended to it after a blank line;
    without TEXT, or with `-`, it is the text. The first token is given, every other one is predicted from
    all before it.
    """
    content = _content(text, files, tokens_file)
    session = open_session(model_name)
    tokens = session.tokenizer.encode(content) if isinstance(content, str) else content
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
    if tokens_file is None:
        refuse_late_text()


def _content(text: str | None, files: tuple[Path, ...], tokens_file: Path | None) -> str | list[int]:
    """Return the text or the token ids to score."""
    given = [text is not None, bool(files), tokens_file is not None]
    if sum(given) <= 1:
        found = _parse(tokens_file) if tokens_file else given_text(text, files)
        if found or any(given):
            return found
    raise click.UsageError("Give either TEXT, --file FILE or --tokens FILE.")


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


def _parse(path: Path) -> list[int]:
    """Read token ids: a JSON list, or numbers between spaces."""
    text = read_file(path).strip()
    try:
        return [int(word) for word in text.removeprefix("[").removesuffix("]").replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(f"{path}: not a list of token ids ({error})") from None
