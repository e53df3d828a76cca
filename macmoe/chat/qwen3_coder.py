"""The chat format of Qwen3-Coder: ChatML like Qwen3's, but tools are declared and called in XML-like lines.

It never thinks. Qwen published two templates, which differ in what they say of a tool, and in how lists and
objects are written as arguments:

| | July 2025 | August 2025 |
|---|---|---|
| lists and objects of an argument | Python's `str` | JSON |
| lists in a declaration | Python's `str`; `enum` and `required` with backticks | JSON |
| other keys of a property | letters of their names replaced | as they are |
| other keys of the parameters and of the function | only `required` and `return` | all |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from macmoe.chat.coder_parser import CoderParser
from macmoe.chat.format import ChatFormat, Conversation, Tools
from macmoe.chat.messages import Message, Segment, ToolCall, control, literal, to_json, with_neighbors
from macmoe.chat.parser import Parser, Vocabulary
from macmoe.chat.qwen3 import QWEN3_TAGS, Qwen3Format
from macmoe.chat.templates import TAG, Wording
from macmoe.errors import ChatFormatError

_ASSISTANT = "<|im_start|>assistant\n"
_END = "<|im_end|>"
_SYSTEM = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."
_TOOLS_BEFORE = "You have access to the following functions:\n\n<tools>"
_TOOLS_AFTER = (
    "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\n"
    "multiple lines\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be "
    "nested within <tool_call></tool_call> XML tags\n- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function "
    "call, but NOT after\n- If there is no function call available, answer the question like normal with "
    "your current knowledge and do not tell the user about function calls\n</IMPORTANT>"
)
_TAGS = tuple(
    f"<{slash}{name}>"
    for name in ("function", "name", "description", "parameters", "parameter", "type", "return")
    for slash in ("", "/")
)
_RENAMED = str.maketrans({"-": "_", " ": "_", "$": None})


@dataclass(frozen=True, kw_only=True)
class Qwen3CoderFormat(ChatFormat):
    """Qwen3-Coder: `variant` is the month of its template, "2025-07" or "2025-08"."""

    variant: str = "2025-08"

    required: ClassVar = Qwen3Format.required
    stops: ClassVar = Qwen3Format.stops
    starts: ClassVar = {_ASSISTANT: "answer"}
    wording: ClassVar = Wording(
        needed=("<|im_start|>", _END, "<function="),
        tags=(*QWEN3_TAGS, *_TAGS, *TAG.findall(_TOOLS_AFTER)),
        sentences=f"system {_SYSTEM} # Tools {_TOOLS_BEFORE} {_TOOLS_AFTER}",
    )

    @classmethod
    def for_model(cls, vocabulary: Vocabulary) -> Self:
        """Tell by the template: that of July writes lists itself."""
        variant = "2025-07" if "render_item_list" in vocabulary.template else "2025-08"
        return replace(super().for_model(vocabulary), variant=variant)

    @property
    def model(self) -> str:
        """The name of the model."""
        return "Qwen3-Coder"

    @property
    def openings(self) -> Mapping[str | None, str]:
        """What the prompt ends with, by setting."""
        return {None: _ASSISTANT, "off": _ASSISTANT}

    @property
    def closing(self) -> str:
        """Nothing: it never thinks."""
        return ""

    def parser(self, vocabulary: Vocabulary, start: str, tools: Tools = ()) -> Parser:
        """Return a parser that starts in the state answer; the declared tools give the types of arguments."""
        return CoderParser(vocabulary, start, tools)

    def _turns(self, conversation: Conversation) -> list[Segment]:
        messages = conversation.messages
        segments = self._system(messages[0], conversation.tools)
        turns = messages[1:] if messages[0].instructs else messages
        for before, message, after in with_neighbors(turns):
            if message.role == "tool":
                segments += _tool_result(message, first=before not in ("", "tool"), last=after != "tool")
                continue
            segments += self._assistant(message) if message.role == "assistant" else _plain(message)
            segments.append(control("" if not after and conversation.ending == "open" else f"{_END}\n"))
        return segments

    def _target(self, answer: Message, opening: str) -> list[Segment]:
        for call in answer.tool_calls:
            if call.arguments is None:
                raise ChatFormatError(
                    f"a call of {call.name} has arguments that are no JSON object, so there is nothing to "
                    f"write between {self.model}'s tags; repair them"
                )
        return self._after(opening, [*self._assistant(answer), control(_END)])

    def _system(self, first: Message, tools: Tools) -> list[Segment]:
        """Write the system turn, which also declares the tools; none where there is nothing to say."""
        if not first.instructs and not tools:
            return []
        text = first.content if first.instructs else _SYSTEM
        segments = [control("<|im_start|>system\n"), literal(text)]
        if tools:
            segments.append(control(f"\n\n{_HEADINGS[self.variant]}{_TOOLS_BEFORE}"))
            segments += [literal(_declaration(tool["function"], self.variant)) for tool in tools]
            segments.append(control(_TOOLS_AFTER))
        return [*segments, control(f"{_END}\n")]

    def _assistant(self, message: Message) -> list[Segment]:
        if not message.tool_calls:
            return [control(_ASSISTANT), literal(message.content)]
        content = message.content.strip()
        segments = [control(_ASSISTANT if content else _ASSISTANT.rstrip("\n")), literal(content)]
        segments.append(control("\n" if content else ""))
        return [*segments, *(part for call in message.tool_calls for part in self._call(call))]

    def _call(self, call: ToolCall) -> Iterator[Segment]:
        yield control("\n<tool_call>\n<function=")
        yield literal(call.name)
        yield control(">\n")
        if call.arguments is None:  # of another model, or broken: the history shows it as it was
            yield literal(f"{call.arguments_text}\n")
        for key, value in (call.arguments or {}).items():
            yield control("<parameter=")
            yield literal(key)
            yield control(">\n")
            yield literal(_written(value, _CONTAINERS[self.variant]))
            yield control("\n</parameter>\n")
        yield control("</function>\n</tool_call>")


def _plain(message: Message) -> list[Segment]:
    role = "system" if message.instructs else message.role
    return [control(f"<|im_start|>{role}\n"), literal(message.content)]


def _tool_result(message: Message, *, first: bool, last: bool) -> list[Segment]:
    """Write a result; consecutive ones share a user turn."""
    return [
        control("<|im_start|>user\n" if first else ""),
        control("<tool_response>\n"),
        literal(message.content),
        control("\n</tool_response>\n"),
        control(f"{_END}\n" if last else ""),
    ]


def _written(value: Any, container: Callable[[Any], str]) -> str:
    """Write a value as the template does: scalars as Python's `str`."""
    return container(value) if isinstance(value, list | tuple | dict) else str(value)


def _declaration(function: Mapping[str, Any], variant: str) -> str:
    """Declare one function."""
    parameters = _mapping(function.get("parameters"))
    describe = _DESCRIPTIONS[variant]
    lines = ["\n<function>", _tag("name", function["name"])]
    if variant == "2025-07" or "description" in function:
        lines.append(_tag("description", str(function.get("description", "")).strip()))
    lines.append("\n<parameters>")
    for name, schema in _mapping(parameters.get("properties")).items():
        fields = _mapping(schema)
        lines += ["\n<parameter>", _tag("name", name)]
        lines += [_tag("type", str(fields["type"]))] if "type" in fields else []
        lines += [_tag("description", str(fields["description"]).strip())] if "description" in fields else []
        lines += [*describe.field(fields), "\n</parameter>"]
    lines += [*describe.parameters(parameters), "\n</parameters>", *describe.function(function)]
    return "".join([*lines, "\n</function>"])


def _tag(name: str, text: str) -> str:
    return f"\n<{name}>{text}</{name}>"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _other_keys(value: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    """Write the keys beside the known ones, as the template of August does."""
    for key in value:
        if key not in known:
            yield _tag(key, _written(value[key], to_json))


def _listed(name: str, values: Any) -> str:
    """Write `enum` or `required` as the template of July does: text in backticks, nothing if it is empty."""
    items = list(values) if isinstance(values, Iterable) else []
    shown = ", ".join(f"`{item}`" if isinstance(item, str) else str(item) for item in items)
    return _tag(name, f"[{shown}]") if items else ""


def _july_field(fields: Mapping[str, Any]) -> Iterator[str]:
    yield _listed("enum", fields.get("enum"))
    for key, value in fields.items():
        if key not in ("type", "description", "enum", "required"):
            text = to_json(value) if isinstance(value, dict) else str(value)
            yield _tag(key.translate(_RENAMED), text)
    yield _listed("required", fields.get("required"))


def _july_function(function: Mapping[str, Any]) -> Iterator[str]:
    if "return" in function:
        value = function["return"]
        yield _tag("return", to_json(value) if isinstance(value, dict) else str(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Description:
    """What a template writes beside name, type and description.

    Attributes:
        field: Of a property.
        parameters: Of the parameters, after all properties.
        function: Of the function, after its parameters.
    """

    field: Callable[[Mapping[str, Any]], Iterable[str]]
    parameters: Callable[[Mapping[str, Any]], Iterable[str]]
    function: Callable[[Mapping[str, Any]], Iterable[str]]


_HEADINGS = {"2025-07": "", "2025-08": "# Tools\n\n"}
_CONTAINERS: dict[str, Callable[[Any], str]] = {"2025-07": str, "2025-08": to_json}
_DESCRIPTIONS = {
    "2025-07": _Description(
        field=_july_field,
        parameters=lambda parameters: [_listed("required", parameters.get("required"))],
        function=_july_function,
    ),
    "2025-08": _Description(
        field=lambda fields: _other_keys(fields, ("name", "type", "description")),
        parameters=lambda parameters: _other_keys(parameters, ("type", "properties")),
        function=lambda function: _other_keys(function, ("type", "name", "description", "parameters")),
    ),
}
