"""What every chat format offers: rendering, training targets, stop tokens, a streaming parser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from macmoe.chat.messages import Message, Segment, check_tools, control, joined
from macmoe.chat.parser import Parser, Vocabulary
from macmoe.chat.templates import Wording
from macmoe.errors import ChatFormatError

Thinking = Literal["off", "on", "low", "medium", "high"]
Ending = Literal["prompt", "closed", "open"]
Tools = Sequence[Mapping[str, Any]]

# Where a model has no levels of its own, a level means: think, and be made to stop after this many tokens.
EFFORT_BUDGETS = {"low": 1024, "medium": 4096, "high": 16384}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What is to be rendered; the fields are the arguments of `ChatFormat.render`."""

    messages: Sequence[Message]
    tools: Tools
    thinking: Thinking | None
    ending: Ending

    def __post_init__(self) -> None:
        """Refuse what has no rendering in any format."""
        if not self.messages:
            raise ChatFormatError("there are no messages to answer; give at least one")
        last = self.messages[-1]
        if self.ending != "prompt" and last.role != "assistant":
            raise ChatFormatError(
                f"the last message is from the {last.role}, so there is no answer to end with"
            )
        if self.ending == "open" and last.tool_calls:
            raise ChatFormatError("an answer with tool calls is complete and cannot be continued")
        check_tools(self.tools)


@dataclass(frozen=True, kw_only=True)
class ChatFormat(ABC):
    """The chat format of one model family, in the variant of one model.

    A format is a value: it holds no tokens and no conversation. The tables are per class; what differs
    between the models of a family is looked up by `variant`.
    """

    variant: str = ""

    required: ClassVar[tuple[str, ...]]
    """Control tokens without which a vocabulary is not of this family."""
    stops: ClassVar[tuple[str, ...]]
    """Control tokens that end the model's turn."""
    words_after: ClassVar[tuple[str, tuple[str, ...]] | None] = None
    """A control token, and the words one of which the model has to write after it."""
    wording: ClassVar[Wording]
    """What the chat templates write that the format knows."""
    starts: ClassVar[Mapping[str, str]]
    """State in which the parser starts, by the control text that a rendering has last of all these."""

    @property
    @abstractmethod
    def model(self) -> str:
        """The name of the model, for messages to the user."""

    @property
    @abstractmethod
    def openings(self) -> Mapping[str | None, str]:
        """What the prompt ends with, by the settings of `thinking` that the model has (None: not set)."""

    @property
    @abstractmethod
    def closing(self) -> str:
        """What makes the model stop thinking and answer; empty where it never thinks."""

    @abstractmethod
    def parser(self, vocabulary: Vocabulary, start: str, tools: Tools = ()) -> Parser:
        """Return a parser for what follows a rendering.

        Args:
            vocabulary: Of the model.
            start: What `start_of` says of that rendering.
            tools: What it declares; where calls do not say the types of their arguments, these do.
        """

    @abstractmethod
    def _turns(self, conversation: Conversation) -> list[Segment]:
        """Write a conversation, without an opening for the model."""

    @abstractmethod
    def _target(self, answer: Message, opening: str) -> list[Segment]:
        """Write what the model writes after the opening, up to its stop token."""

    @classmethod
    def for_model(cls, vocabulary: Vocabulary) -> Self:
        """Return the format for a checkpoint; ChatFormatError where its vocabulary lacks control tokens."""
        missing = [token for token in cls.required if vocabulary.token_id(token) is None]
        if missing:
            raise ChatFormatError(
                f"the tokenizer has no token {missing[0]}, so this is not a chat model of its family; "
                "use the tokenizer of the chat model, or give raw text"
            )
        return cls()

    @property
    def settings(self) -> tuple[str, ...]:
        """The values of `thinking` that this model accepts."""
        own = [setting for setting in self.openings if setting is not None]
        return tuple(dict.fromkeys([*own, *(EFFORT_BUDGETS if "on" in own else ())]))

    def opening(self, thinking: Thinking | None) -> str:
        """Return what the prompt ends with; ChatFormatError where the model cannot do what is asked for."""
        if thinking is not None and thinking not in self.settings:
            raise ChatFormatError(
                f"{self.model} has no thinking={thinking!r}; it accepts {', '.join(self.settings)}"
            )
        return self.openings[thinking if thinking in self.openings else "on"]

    def budget(self, thinking: Thinking | None) -> int | None:
        """Return after how many tokens to close the thinking, where that is what the setting means here."""
        return None if thinking is None or thinking in self.openings else EFFORT_BUDGETS.get(thinking)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Tools = (),
        thinking: Thinking | None = None,
        ending: Ending = "prompt",
    ) -> list[Segment]:
        """Write a conversation as the family's official template does.

        Args:
            messages: The conversation, in order.
            tools: Declarations: `{"type": "function", "function": {"name", "description", "parameters"}}`.
            thinking: One of `settings`; None leaves it to the model.
            ending: "prompt" ends where the model starts to write; "closed" ends with a finished assistant
                message; "open" ends inside an assistant message that the model is to continue.
        """
        conversation = Conversation(messages=messages, tools=tools, thinking=thinking, ending=ending)
        refusal = self._refusal(conversation)
        if refusal is not None:
            raise ChatFormatError(refusal)
        opening = self._opening_after(conversation)
        segments = self._turns(conversation)
        return joined([*segments, control(opening)] if ending == "prompt" else segments)

    def render_target(
        self, messages: Sequence[Message], *, tools: Tools = (), thinking: Thinking | None = None
    ) -> list[Segment]:
        """Write a training sample: the prompt of inference, then, marked, what the model has to write.

        The last message is the answer to learn. Templates drop the reasoning of earlier answers, so that a
        conversation is one sample for each answer that is to be learned: `messages[: i + 1]`.

        Args:
            messages: The conversation up to and including the answer.
            tools: As in `render`.
            thinking: The mode of the prompt; None takes the mode that the answer was written in.
        """
        if not messages or messages[-1].role != "assistant":
            raise ChatFormatError("the last message of a training sample must be the assistant's answer")
        *history, answer = messages
        apart = self._apart(answer)
        if apart.reasoning:
            self.opening("on")  # refuses reasoning that the model could not have written
        mode = thinking or self._mode_of(apart)
        conversation = Conversation(messages=history, tools=tools, thinking=mode, ending="prompt")
        opening = self._opening_after(conversation)
        prompt = joined([*self._turns(conversation), control(opening)])
        target = joined(self._target(answer, opening))
        return [*prompt, *(replace(segment, trainable=True) for segment in target)]

    def close_thinking(self) -> list[Segment]:
        """Return what to append to thinking so that the model answers; empty where the model never thinks."""
        return joined([control(self.closing)])

    def start_of(self, segments: Sequence[Segment]) -> str:
        """Return the state in which a rendering leaves the model: header, thinking, answer or auto."""
        written = "".join(segment.text for segment in segments if segment.control)
        return self.starts[max(self.starts, key=written.rfind)]

    def stop_ids(self, vocabulary: Vocabulary) -> frozenset[int]:
        """Return the ids of all tokens that end the model's turn."""
        ids = (vocabulary.token_id(token) for token in self.stops)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def _opening_after(self, conversation: Conversation) -> str:
        """Return the opening that follows a conversation."""
        return self.opening(conversation.thinking)

    def _refusal(self, conversation: Conversation) -> str | None:  # noqa: ARG002 - of formats that have one
        """Return why the model could not go on with a conversation, None where it can."""
        return None

    def _apart(self, answer: Message) -> Message:
        """Return an answer with the reasoning in its own field; it may stand in the content, between tags."""
        return answer

    def _mode_of(self, answer: Message) -> Thinking | None:
        """Return the mode of an answer, of which a model with levels, or without a choice, has only one."""
        if "off" not in self.openings or "medium" in self.openings:
            return None
        return "on" if answer.reasoning else "off"

    def _after(self, opening: str, turn: Sequence[Segment]) -> list[Segment]:
        """Return the turn of the model without its opening."""
        first, *rest = joined(turn)
        if not first.text.startswith(opening):
            raise ChatFormatError(
                f"the answer to learn cannot follow {opening!r}, as it has to in this mode of {self.model}; "
                "leave thinking unset to take the mode of the answer"
            )
        return [control(first.text.removeprefix(opening)), *rest]
