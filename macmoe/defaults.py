"""How a checkpoint is to be sampled, and what ends its answers: generation_config.json or its substitutes.

The file decides nothing else, so nothing but sampling asks for it. Keys that choose no token are passed over;
penalties are applied (`macmoe.penalties`); what cannot be done is said, and refused only where nothing stands
in for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from macmoe.config import load_config, load_json
from macmoe.config_reader import ConfigReader, misspelled
from macmoe.errors import ConfigError, UsageError
from macmoe.sampling import SamplingOptions

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
# What chooses tokens and is done here, besides do_sample.
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
USED = ("temperature", "top_k", "top_p", "min_p", *PENALTIES)
# Other searches, in whose place a token is sampled or, without do_sample, the best one taken -> neutral.
SEARCH: dict[str, Any] = {
    "constraints": [],
    "diversity_penalty": 0.0,
    "dola_layers": [],
    "force_words_ids": [],
    "mirostat": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
}
# What changes probabilities in ways that are not here, so that the caller has to choose others -> neutral.
UNSUPPORTED: dict[str, Any] = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "dry_multiplier": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": [],
    "forced_bos_token_id": [],
    "forced_eos_token_id": [],
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "sequence_bias": [],
    "suppress_tokens": [],
    "token_healing": False,
    "top_h": 1.0,
    "top_n_sigma": 0.0,
    "typical_p": 1.0,
    "watermarking_config": {},
    "xtc_probability": 0.0,
}
# Slips of these in a file are errors: `temprature` was meant to do something.
KNOWN = {"bos_token_id", "do_sample", "eos_token_id", "stop_strings", *USED, *SEARCH, *UNSUPPORTED}
# What Qwen's model cards recommend, by a word of the model's name; greedy search repeats itself endlessly.
QWEN3_THINKING = SamplingOptions(temperature=0.6, top_k=20, top_p=0.95)
QWEN3_INSTRUCT = SamplingOptions(temperature=0.7, top_k=20, top_p=0.8)
QWEN3 = {"Coder": replace(QWEN3_INSTRUCT, repetition_penalty=1.05), "Instruct": QWEN3_INSTRUCT}


def recommended(family: str, model: str) -> SamplingOptions:
    """Return how to sample where a checkpoint says nothing: as the family's publisher recommends.

    Args:
        family: Its name.
        model: The model that the chat format takes it for.
    """
    if family != "qwen3":
        return SamplingOptions()
    return next((options for word, options in QWEN3.items() if word in model), QWEN3_THINKING)


class Vocabulary(Protocol):
    """What names a token."""

    def token_id(self, token: str) -> int | None:
        """Return the id of a token written exactly like this, or None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """How to sample where the caller does not say.

    Attributes:
        sampling: The options.
        stop_ids: Further ids that end an answer.
        stop: Texts that end an answer.
        replaced: Ways to search that the checkpoint asks for, in whose place `sampling` stands.
        unsupported: What it asks for besides, which `sampling` does not do.
    """

    sampling: SamplingOptions
    stop_ids: frozenset[int]
    stop: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, folder: Path, vocabulary: Vocabulary | None = None, fallback: SamplingOptions | None = None
    ) -> Defaults:
        """Read generation_config.json and, where that names no end, config.json and tokenizer_config.json.

        Args:
            folder: The model folder.
            vocabulary: Knows the id of the token that tokenizer_config.json names.
            fallback: Stands for sampling of which the file says nothing; None takes the best token.

        Raises:
            ConfigError: A file is invalid.
        """
        path = folder / FILE
        data = load_json(path) if path.exists() else {}
        reader = ConfigReader(data, str(path))
        _refuse_slips(data, str(path))
        return cls(
            sampling=_sampling(reader, fallback or SamplingOptions()),
            stop_ids=_stop_ids(reader, folder, vocabulary),
            stop=_texts(reader),
            replaced=_asked(data, SEARCH),
            unsupported=_asked(data, UNSUPPORTED),
        )

    def options(self, given: Mapping[str, Any]) -> SamplingOptions:
        """Return the sampling options, changed by those that are not None.

        Raises:
            UsageError: A value makes no sense.
            ConfigError: The checkpoint asks for what cannot be done, and the caller chose nothing instead.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if self.unsupported and chosen.keys() <= {"seed"}:
            raise ConfigError(
                f"{FILE} asks for {', '.join(self.unsupported)}, which macmoe does not do, so answers would "
                "differ; choose how to sample, for example with temperature (--temperature 0.7)"
            )
        return replace(self.sampling, **chosen)

    def remarks(self) -> list[str]:
        """Return a line for everything that the checkpoint asks for and does not get."""
        how = "the most probable token is taken" if self.sampling.temperature == 0 else "tokens are sampled"
        lines = [f"{FILE} asks for {name}, which macmoe does not do; {how} instead" for name in self.replaced]
        return [*lines, *(f"{FILE} asks for {name}, which macmoe leaves out" for name in self.unsupported)]


def _refuse_slips(data: Mapping[str, Any], file: str) -> None:
    for key, value in data.items():
        if key not in KNOWN and value is not None and (hint := misspelled(key, KNOWN)):
            raise ConfigError(f"{file}: unknown key '{key}'{hint}")


def _asked(data: Mapping[str, Any], neutral: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{key} = {data[key]!r}"
        for key, value in neutral.items()
        if data.get(key) not in (None, value, [], {}, 0, "")
    )


def _sampling(reader: ConfigReader, fallback: SamplingOptions) -> SamplingOptions:
    """Read what is done here; as in transformers, without do_sample the best token is taken."""
    samples = reader.take("do_sample", bool, None)
    says_how = any(reader.data.get(key) is not None for key in USED) or _asked(reader.data, SEARCH)
    if samples is None and not says_how:
        return fallback
    temperature = reader.take("temperature", float, 1.0)
    top_k = reader.take("top_k", int, 0)
    try:
        return SamplingOptions(
            temperature=temperature if samples else 0.0,
            top_k=0 if top_k == -1 else top_k,  # as vLLM writes "all"
            top_p=reader.take("top_p", float, 1.0),
            min_p=reader.take("min_p", float, 0.0),
            repetition_penalty=reader.take("repetition_penalty", float, 1.0),
            presence_penalty=reader.take("presence_penalty", float, 0.0),
            frequency_penalty=reader.take("frequency_penalty", float, 0.0),
        )
    except UsageError as error:
        raise ConfigError(f"{reader.file}: {error}") from None


def _texts(reader: ConfigReader) -> tuple[str, ...]:
    """Read `stop_strings`: one text or a list of them."""
    said = reader.take("stop_strings", object, [])
    texts: list[Any] = said if isinstance(said, list) else [said]
    if not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"{reader.file}: key 'stop_strings' is {said!r} where texts are needed")
    return tuple(texts)


def _stop_ids(reader: ConfigReader, folder: Path, vocabulary: Vocabulary | None) -> frozenset[int]:
    """Return the ids that end an answer: those of the file or, where it has none, of the files beside it."""
    ends = _ids(reader.take("eos_token_id", object, []))
    if not ends:
        return _ends_beside(folder, vocabulary)
    vocab = ConfigReader(load_config(folder), str(folder / "config.json")).take("vocab_size", int)
    if not all(_is_id(each, vocab) for each in ends):
        raise ConfigError(
            f"{reader.file}: key 'eos_token_id' is {reader.data['eos_token_id']!r} where ids of this model's "
            f"{vocab:,} tokens are needed; its answers would not end"
        )
    return frozenset(ends)


def _ids(said: Any) -> list[Any]:
    """`eos_token_id` is absent, one id, or a list of them."""
    return said if isinstance(said, list) else [said]


def _is_id(value: Any, vocab: int) -> bool:
    return type(value) is int and 0 <= value < vocab


def _ends_beside(folder: Path, vocabulary: Vocabulary | None) -> frozenset[int]:
    """Return what config.json and tokenizer_config.json call the end; ids that cannot be one are none."""
    config = load_json(folder / "config.json") if (folder / "config.json").exists() else {}
    vocab = config.get("vocab_size")
    ends = [each for each in _ids(config.get("eos_token_id")) if type(vocab) is int and _is_id(each, vocab)]
    path = folder / "tokenizer_config.json"
    token = load_json(path).get("eos_token") if vocabulary is not None and path.exists() else None
    text = token.get("content") if isinstance(token, Mapping) else token
    named = vocabulary.token_id(text) if vocabulary is not None and isinstance(text, str) else None
    return frozenset([*ends, *([] if named is None else [named])])
