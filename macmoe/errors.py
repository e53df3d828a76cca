"""The exception tree: everything macmoe raises on purpose is a MacmoeError.

Messages are one line: what is wrong, where, why it matters, what to do. The command line prints that line and
exits with 1.

    MacmoeError
    |- UsageError              an argument that makes no sense
    |  `- ContextError         a prompt that is longer than the context of the model
    |- ConfigError             config.json, generation_config.json
    |- CheckpointError         files of weights and tokenizers
    |  `- ConversionError      a source that the rule tables cannot turn into a macmoe checkpoint
    |- ChatFormatError         messages that a chat format cannot express
    |- DatasetError            training data (file and line)
    `- MemoryLimitError        what does not fit
"""


class MacmoeError(Exception):
    """Base of all expected failures."""


class UsageError(MacmoeError, ValueError):
    """An argument or a combination of arguments that makes no sense."""


class ContextError(UsageError):
    """A prompt that is longer than the context of the model.

    Attributes:
        tokens: How many the prompt has.
        positions: How many the model knows.
    """

    def __init__(self, tokens: int, positions: int, remedy: str = "shorten the prompt") -> None:
        super().__init__(
            f"the prompt has {tokens} tokens and this model knows {positions} positions; {remedy}"
        )
        self.tokens = tokens
        self.positions = positions


class ConfigError(MacmoeError):
    """A configuration file that is invalid, incomplete, or asks for something unsupported."""


class CheckpointError(MacmoeError):
    """Weights or tokenizer files that are missing, damaged, or do not fit the model."""


class ConversionError(CheckpointError):
    """A source checkpoint that does not map onto the model completely in both directions."""


class ChatFormatError(MacmoeError):
    """Messages or settings that the chat format of the model cannot express."""


class DatasetError(MacmoeError):
    """Training data that cannot be used; the message names file and line."""


class MemoryLimitError(MacmoeError):
    """Something that does not fit into the memory of this machine."""
