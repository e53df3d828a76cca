"""A loaded model that answers: weights, tokenizer and chat format put together.

    session = macmoe.load("tiny:qwen3")
    for event in session.generate("What is 17 + 25?", thinking="on"):
        ...

Events are those of macmoe.chat.events, and one Stats at the end.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmoe.answer import Answer, Limits, PlainText, Stats
from macmoe.chat import format_for
from macmoe.chat.events import Event
from macmoe.chat.format import ChatFormat, Thinking
from macmoe.chat.messages import Message, read_messages
from macmoe.constraint import WordConstraint
from macmoe.conversation import Conversation, Settings
from macmoe.converted import KEEP
from macmoe.defaults import Defaults, recommended
from macmoe.errors import ChatFormatError, UsageError
from macmoe.families import Family, Model
from macmoe.generate import Progress
from macmoe.loading import load_model
from macmoe.opening import Wish, prepare
from macmoe.paths import expand_home
from macmoe.prompt_cache import PromptCache
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.stopping import stop_texts
from macmoe.tokenizer import Tokenizer
from macmoe.tools import ToolLike, declarations

if TYPE_CHECKING:
    from macmoe.adapters.attach import Adapter

logger = logging.getLogger(__name__)


def load(
    path_or_repo: str | Path,
    dtype: str | None = None,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
    *,
    allow_unknown_keys: bool = False,
    quantize: str | None = None,
    force: bool = False,
    loading: Progress | None = None,
    announce: Callable[[str], None] = logger.info,
) -> Session:
    """Load a model; a large one in another layout is converted first, once (`macmoe.converted`).

    Args:
        path_or_repo: A local folder in macmoe, hub or mlx-lm layout, a hub id, a short name such as
            "gpt-oss-20b", or a built-in model such as "tiny:qwen3"; a recipe may stand behind a colon.
        dtype: "float32", "bfloat16" or "float16"; by default the checkpoint's, on a CPU float32.
        adapter: A folder with an adapter of macmoe, PEFT or mlx-lm to answer with, see `Session.use_adapter`.
        progress: Called, while a model is converted, with the bytes written so far and in all.
        allow_unknown_keys: Warn of keys in config.json that macmoe does not know instead of refusing them;
            the model may compute something else then.
        quantize: A recipe of `macmoe convert --quantize`, such as "4bit"; None: as the checkpoint is packed.
        force: Go on where memory or disk are too small for the model.
        loading: Called with the bytes of weights loaded so far and in all.
        announce: Called with a line before a download or a conversion; otherwise it is logged.

    Raises:
        MemoryLimitError: The model does not fit into the memory of this machine.
        MacmoeError: The model or the adapter does not exist, is unsupported or damaged.
    """
    wish = Wish(
        recipe=quantize,
        force=force,
        announce=announce,
        converting=progress,
        allow_unknown_keys=allow_unknown_keys,
    )
    opened = prepare(str(path_or_repo), wish)
    session = load_folder(opened.folder, dtype, opened.recipe, loading, allow_unknown_keys=allow_unknown_keys)
    if adapter is not None:
        session.use_adapter(adapter)
    return session


def load_folder(
    folder: Path,
    dtype: str | None = None,
    recipe: str = KEEP,
    progress: Progress | None = None,
    *,
    allow_unknown_keys: bool = False,
) -> Session:
    """Load a folder as it lies; another layout is converted on the way, and nothing is kept.

    Args:
        folder: The folder.
        dtype: See `load`.
        recipe: How matrices are packed on the way.
        progress: Called with the bytes of weights loaded so far and in all.
        allow_unknown_keys: See `load`.

    Raises:
        MacmoeError: The model is unsupported or damaged.
    """
    tokenizer = Tokenizer.from_folder(folder)  # small, so refused first
    loaded = load_model(folder, dtype, recipe, progress, allow_unknown_keys=allow_unknown_keys)
    return Session(*loaded, tokenizer, folder)


class Session:
    """A loaded model with its tokenizer, chat format and defaults.

    Attributes:
        family: Which family the model belongs to.
        model: The model: `session.model(tokens)` returns logits.
        tokenizer: Text to ids and back.
        defaults: Of generation_config.json.
    """

    def __init__(self, family: Family, model: Model, tokenizer: Tokenizer, defaults: Defaults | Path) -> None:
        """Put them together; `defaults` are read from a folder when they are needed."""
        self.family = family
        self.model = model
        self.tokenizer = tokenizer
        self._defaults = defaults
        self._said = False
        self._adapters: dict[str | Path, Adapter] = {}

    @functools.cached_property
    def defaults(self) -> Defaults:
        """How to sample, and what ends an answer, where the caller does not say.

        Raises:
            ConfigError: generation_config.json is invalid.
        """
        if isinstance(self._defaults, Defaults):
            return self._defaults
        try:
            known_as = self.format.model
        except ChatFormatError:  # no chat model
            known_as = ""
        return Defaults.read(self._defaults, self.tokenizer, recommended(self.family.name, known_as))

    @functools.cached_property
    def format(self) -> ChatFormat:
        """The chat format of the model.

        Raises:
            ChatFormatError: The tokenizer is not that of a chat model.
        """
        return format_for(self.family.name, self.tokenizer)

    @functools.cached_property
    def _constraint(self) -> WordConstraint | None:
        """What keeps headers well formed, where the format has headers."""
        if self.format.words_after is None:
            return None
        after, words = self.format.words_after
        ids = [self.tokenizer.encode(word) for word in words]
        return WordConstraint(
            self.tokenizer.encode(after, control=True)[0], ids, self.model.config.vocab_size
        )

    def use_adapter(self, folder: str | Path | None) -> None:
        """Answer with this adapter from now on, or, with None, as the model is without any.

        Adapters used before come back at once. What a cache holds was computed with the adapter of its time:
        after the exchange let it forget (`PromptCache.forget`, `Conversation.forget`).

        Raises:
            MacmoeError: The folder holds no adapter for this model.
        """
        from macmoe.adapters.attach import apply, detach  # noqa: PLC0415 - most sessions have no adapter
        from macmoe.adapters.opening import open_adapter  # noqa: PLC0415

        if folder is not None and folder not in self._adapters:
            self._adapters[folder] = open_adapter(expand_home(folder), self.model, self.family.name)
        if folder is None:
            detach(self.model)
        else:
            apply(self.model, self._adapters[folder])

    def make_cache(self, bits: int | None = None) -> PromptCache:
        """Return a cache that lets the turns of a conversation reuse each other's work.

        Args:
            bits: 8 keeps what grows with the context in about half of bfloat16's memory, a little less
                exactly; None keeps it in the model's type.

        Raises:
            UsageError: The cache of this model cannot be packed so.
        """
        return PromptCache(self.model, bits)

    def sampling(self, **options: float | None) -> SamplingOptions:
        """Return the model's sampling defaults, changed by the options that are not None.

        Raises:
            UsageError: A value makes no sense.
            ConfigError: The model's generation_config.json is invalid, or asks for what cannot be done and
                nothing is given instead.
        """
        sampling = self.defaults.options(options)
        for line in () if self._said else self.defaults.remarks():
            logger.warning("%s", line)
        self._said = True
        return sampling

    def sampler(self, sampling: SamplingOptions) -> Sampler:
        """Return what chooses the tokens of an answer; headers stay well formed, where there are any."""
        return Sampler(sampling, self._constraint)

    def generate(
        self,
        prompt: str | Sequence[Message | Mapping[str, Any]],
        *,
        system: str | None = None,
        tools: Sequence[ToolLike] = (),
        thinking: Thinking | None = None,
        thinking_budget: int | None = None,
        max_tokens: int | None = None,
        max_answer_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        cache: PromptCache | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Event | Stats]:
        """Answer a question or continue a conversation; yield events as they become certain, then Stats.

        Args:
            prompt: A question, or messages, also as dictionaries in the form of OpenAI and others.
            system: A system message before them.
            tools: What the model may call: functions, tools, or declarations. Calls are events; none is run.
            thinking: "off", "on", "low", "medium", "high"; None leaves it to the model.
            thinking_budget: Close the thinking after this many tokens; None: as `thinking` says.
            max_tokens: At most this many tokens, thinking included; None: what the context has room for, of
                which thinking leaves a quarter, or 4,096, to the answer.
            max_answer_tokens: At most this many tokens of answer; None: as many as `max_tokens` allows.
            temperature: As the other sampling options, see SamplingOptions; None: generation_config.json.
            top_p: See SamplingOptions.
            top_k: See SamplingOptions.
            min_p: See SamplingOptions.
            repetition_penalty: See SamplingOptions.
            presence_penalty: See SamplingOptions.
            frequency_penalty: See SamplingOptions.
            seed: Makes the answer reproducible.
            stop: Texts that end the answer and are not shown; thinking may hold them.
            cache: Of the earlier turns of the conversation (`make_cache`); None processes the whole prompt.
            progress: Called with (tokens done, tokens in all) while the prompt is processed.

        Raises:
            UsageError: An argument makes no sense, or the prompt is empty or too long.
            ChatFormatError: The format of the model cannot express the messages or the setting.
        """
        chat = self.format
        declared = declarations(tools)
        segments = chat.render(_messages(prompt, system), tools=declared, thinking=thinking)
        limits = Limits(
            tokens=max_tokens,
            answer=max_answer_tokens,
            thinking=chat.budget(thinking) if thinking_budget is None else thinking_budget,
            reserve=max_tokens is None,
            stop_ids=chat.stop_ids(self.tokenizer) | self.defaults.stop_ids,
            stop=stop_texts(stop) + self.defaults.stop,
        )
        parser = chat.parser(self.tokenizer, chat.start_of(segments), declared)
        closing = self.tokenizer.encode_segments(chat.close_thinking())
        sampling = self.sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
        )
        answer = Answer(self.model, parser, limits, closing)
        ids = self.tokenizer.encode_segments(segments)
        yield from answer.events(ids, self.sampler(sampling), held=cache, progress=progress)

    def chat(
        self,
        settings: Settings | None = None,
        *,
        messages: Sequence[Message] = (),
        tools: Sequence[ToolLike] = (),
        cache: PromptCache | None = None,
    ) -> Conversation:
        """Begin a conversation, or continue one; its turns reuse each other's work.

        Args:
            settings: How to answer: the arguments of `generate`, system message and sampling included.
            messages: What was said before.
            tools: What the model may call; `Conversation.run` runs a call when you ask for it.
            cache: Of the same conversation, for example from a file (`PromptCache.load`).

        Raises:
            UsageError: A function cannot be described to a model.
        """
        cache = self.make_cache() if cache is None else cache
        return Conversation(
            self.generate, settings or Settings(), messages=messages, tools=tools, cache=cache
        )

    def complete(
        self,
        text: str,
        *,
        max_tokens: int | None = None,
        sampling: SamplingOptions | None = None,
        stop: str | Sequence[str] | None = (),
        cache: PromptCache | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Event | Stats]:
        """Continue a text without any chat format; token strings in it become control tokens.

        Args:
            text: What to continue.
            max_tokens: At most this many tokens; None: what the context has room for.
            sampling: How to choose tokens; None: as the model asks (`Session.sampling`).
            stop: Texts that end the answer and are not shown.
            cache: See `generate`.
            progress: See `generate`.

        Raises:
            UsageError: See `generate`.
        """
        stops = stop_texts(stop) + self.defaults.stop
        limits = Limits(tokens=max_tokens, stop_ids=self.defaults.stop_ids, stop=stops)
        answer = Answer(self.model, PlainText(self.tokenizer), limits)
        ids = self.tokenizer.encode(text, control=True)
        sampler = Sampler(sampling or self.sampling())
        yield from answer.events(ids, sampler, held=cache, progress=progress)


def _messages(prompt: str | Sequence[Message | Mapping[str, Any]], system: str | None) -> list[Message]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError("the prompt is empty: there is nothing to answer")
        prompt = [Message("user", prompt)]
    messages = read_messages(prompt)
    return messages if system is None else [Message("system", system), *messages]
