"""What generation_config.json asks for: strictly read, so that nothing that changes an answer is ignored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macmoe.config import ConfigReader, load_config, load_json
from macmoe.errors import ConfigError, UsageError
from macmoe.sampling import SamplingOptions

FILE = "generation_config.json"
LENGTH = "the caller says how long an answer may be"
RUNNING = "how another library computes, not what"
DRAFTS = "how another library drafts, which changes no answer"
# Keys that do not change which token is chosen.
IGNORED = {
    **dict.fromkeys(("_from_model_config", "transformers_version"), "information only"),
    **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), "chat formats begin a prompt"),
    "pad_token_id": "nothing is padded with it",
    **dict.fromkeys(("max_length", "max_new_tokens", "max_time"), LENGTH),
    **dict.fromkeys(("cache_config", "cache_implementation", "compile_config"), RUNNING),
    **dict.fromkeys(("continuous_batching_config", "disable_compile", "low_memory"), RUNNING),
    **dict.fromkeys(("max_cache_len", "prefill_chunk_size", "use_cache"), RUNNING),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_logits"), "further results"),
    **dict.fromkeys(("output_scores", "return_dict_in_generate"), "further results"),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_early_exit"), DRAFTS),
    **dict.fromkeys(("assistant_ensemble_weight", "assistant_lookbehind", "is_assistant"), DRAFTS),
    **dict.fromkeys(("max_matching_ngram_size", "num_assistant_tokens", "use_mtp"), DRAFTS),
    **dict.fromkeys(("num_assistant_tokens_schedule", "prompt_lookup_num_tokens"), DRAFTS),
    **dict.fromkeys(("speculation_type", "target_lookbehind"), DRAFTS),
    **dict.fromkeys(("early_stopping", "length_penalty"), "of a search with beams, which is refused"),
    "num_beam_groups": "of a search with beams, which is refused",
    "renormalize_logits": "samples alike",
    "remove_invalid_values": "weights that are not finite are a warning",
}
# Keys that change which token is chosen, in ways that are not here -> the value that changes nothing.
NEUTRAL: dict[str, Any] = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "constraints": [],
    "diversity_penalty": 0.0,
    "dola_layers": [],
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": [],
    "force_words_ids": [],
    "forced_bos_token_id": [],
    "forced_eos_token_id": [],
    "frequency_penalty": 0.0,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "sequence_bias": [],
    "stop_strings": [],
    "suppress_tokens": [],
    "token_healing": False,
    "top_h": 1.0,
    "typical_p": 1.0,
    "watermarking_config": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What generation_config.json asks for: sampling, and further ids that end an answer."""

    sampling: SamplingOptions
    stop_ids: frozenset[int]

    @classmethod
    def read(cls, folder: Path) -> Defaults:
        """Read generation_config.json; without that file, or with do_sample false, the best token is taken.

        Raises:
            ConfigError: The file is invalid, or asks for what is not supported.
        """
        path = folder / FILE
        reader = ConfigReader(load_json(path) if path.exists() else {}, str(path))
        reader.ignore(IGNORED)
        for key, value in NEUTRAL.items():
            reader.expect(key, value, "answers would differ; write that value to go on without")
        samples = reader.take("do_sample", bool, False)
        temperature = reader.take("temperature", float, 1.0)
        try:
            sampling = SamplingOptions(
                temperature=temperature if samples else 0.0,
                top_k=reader.take("top_k", int, 0),
                top_p=reader.take("top_p", float, 1.0),
                min_p=reader.take("min_p", float, 0.0),
            )
        except UsageError as error:
            raise ConfigError(f"{path}: {error}") from None
        stop_ids = _stop_ids(reader, folder)
        reader.finish()
        return cls(sampling=sampling, stop_ids=stop_ids)


def _stop_ids(reader: ConfigReader, folder: Path) -> frozenset[int]:
    """Return the ids that end an answer: `eos_token_id` is absent, one id, or a list of them."""
    ends = reader.take("eos_token_id", object, [])
    ids: list[Any] = ends if isinstance(ends, list) else [ends]
    if ids:
        vocab = ConfigReader(load_config(folder), str(folder / "config.json")).take("vocab_size", int)
        if not all(type(each) is int and 0 <= each < vocab for each in ids):
            raise ConfigError(
                f"{reader.file}: key 'eos_token_id' is {ends!r} where ids of this model's {vocab:,} tokens "
                "are needed; its answers would not end"
            )
    return frozenset(ids)
