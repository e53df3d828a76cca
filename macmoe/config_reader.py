"""The reader of JSON objects that passes over no key: each is taken, expected, ignored, or an error."""

import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, TypeVar, overload

from macmoe.config_keys import SYNONYMS, is_empty, reason_to_ignore
from macmoe.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")
D = TypeVar("D")

Check = Callable[[Mapping[str, Any], str], object]

REQUIRED: Any = object()
WAY_ON = "; if you know better, --allow-unknown-keys (in Python allow_unknown_keys=True) goes on without"
LARGEST = sys.float_info.max


def _digits(word: str) -> list[str]:
    return re.findall(r"[0-9]+", word)


def misspelled(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for a known word one slip away or a synonym, else an empty string.

    Unlike `nearest` it suggests nothing that only looks alike: `deepseek_v32` is no slip of `deepseek_v3`.
    """
    known = set(known)
    if SYNONYMS.get(word) in known:
        return f"; did you mean '{SYNONYMS[word]}'?"
    alike = (each for each in sorted(known) if _digits(each) == _digits(word) and _one_slip(word, each))
    found = next(alike, "")
    return f"; did you mean '{found}'?" if found else ""


def _one_slip(one: str, other: str) -> bool:
    """Return whether the words differ by one letter more, less, other, or swapped with its neighbor."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    begin = sum(1 for _ in same)
    rest, wanted = one[begin:], other[begin:]
    swapped = rest[:2] == wanted[:2][::-1] and rest[2:] == wanted[2:]
    return rest != wanted and (swapped or rest[1:] in (wanted, wanted[1:]) or rest == wanted[1:])


class UnknownKeysError(ConfigError):
    """Keys that could change what a model computes, for all that is known.

    Attributes:
        keys: The keys; those inside an object with its name and a dot before.
    """

    def __init__(self, file: str, hints: Mapping[str, str], *, can_be_allowed: bool) -> None:
        self.keys = tuple(hints)
        many = len(hints) > 1
        names = ", ".join(f"'{key}'" for key in hints)
        suggested = (f"{hint[:-1]} for '{key}'?" if many else hint for key, hint in hints.items() if hint)
        super().__init__(
            f"{file}: unknown key{'s' if many else ''} {names}{''.join(suggested)}; ignoring "
            f"{'them' if many else 'it'} could silently change what the model computes"
            f"{WAY_ON if can_be_allowed else ''}"
        )


def permitted(
    data: Mapping[str, Any], file: str, check: Check, *, allow_unknown_keys: bool
) -> dict[str, Any]:
    """Return a configuration that passed a check; unknown keys, where they are allowed, are left out of it.

    Args:
        data: The configuration.
        file: What to call it.
        check: Reads it.
        allow_unknown_keys: Warn of unknown keys and go on without them.

    Raises:
        ConfigError: The check fails, or there are unknown keys and they are not allowed.
    """
    try:
        check(data, file)
    except UnknownKeysError as error:
        if not allow_unknown_keys:
            raise
        logger.warning(
            "%s: ignored without knowing what they mean: %s; the model may compute something else",
            file,
            ", ".join(error.keys),
        )
        return _without(data, error.keys)
    return dict(data)


def _without(data: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a copy without these keys; "a.b" is the key b of the object a."""
    left = dict(data)
    for key in keys:
        outer, _, inner = key.partition(".")
        if key in left:
            del left[key]
        elif isinstance(left.get(outer), Mapping):
            left[outer] = _without(left[outer], [inner])
    return left


def _fits(value: Any, kind: type) -> bool:
    if kind is float:  # JSON as Python reads it has NaN and Infinity, too
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    if kind is int:  # JavaScript and YAML tools write 32768.0
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool)
    return isinstance(value, kind)


class ConfigReader:
    """Hands out the keys of one JSON object and finds, at the end, those that nobody asked for.

    Args:
        data: The object.
        file: What to call it in errors, for example "/models/x/config.json".
    """

    def __init__(self, data: Mapping[str, Any], file: str) -> None:
        self.data = data
        self.file = file
        self._known: set[str] = set()
        self._bookkeeping: Callable[[str, Any], object] = lambda _, value: is_empty(value)
        self._hints: dict[str, str] | None = None
        self._outer: tuple[ConfigReader, str] | None = None

    def __enter__(self) -> Self:
        """Collect unknown keys, those of inner objects too, for one error at the end."""
        self._hints = {}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Finish, unless something else failed."""
        if kind is None:
            self.finish()

    def inside(self, key: str, data: Mapping[str, Any]) -> "ConfigReader":
        """Return a reader of the object under `key`, whose unknown keys are named together with these."""
        inner = ConfigReader(data, f"{self.file}: {key}")
        inner._outer = (self, key)
        return inner

    def _find(self, names: tuple[str, ...]) -> str | None:
        """Return the spelling in use; two spellings that disagree are an error."""
        self._known.update(names)
        present = [name for name in names if self.data.get(name) is not None]
        if len({json.dumps(self.data[name], sort_keys=True) for name in present}) > 1:
            raise ConfigError(f"{self.file}: {' and '.join(present)} mean the same and disagree; keep one")
        return present[0] if present else None

    @overload
    def take(self, key: str, kind: type[T], *, aliases: tuple[str, ...] = ()) -> T: ...

    @overload
    def take(self, key: str, kind: type[T], default: D, *, aliases: tuple[str, ...] = ()) -> T | D: ...

    def take(self, key: str, kind: type, default: Any = REQUIRED, *, aliases: tuple[str, ...] = ()) -> Any:
        """Return the value of `key` (or of an alias of it), checked to be a `kind`; null counts as absent.

        Raises:
            ConfigError: The key is absent and has no default, or its value has another type.
        """
        found = self._find((key, *aliases))
        if found is None:
            if default is not REQUIRED:
                return default
            unused = set(self.data) - self._known
            raise ConfigError(f"{self.file}: key '{key}' is missing{misspelled(key, unused)}")
        value = self.data[found]
        if not _fits(value, kind):
            raise ConfigError(f"{self.file}: key '{found}' is {value!r} where {kind.__name__} is needed")
        return kind(value) if kind in (float, int) else value

    def size(
        self, key: str, default: Any = REQUIRED, *, least: int = 1, aliases: tuple[str, ...] = ()
    ) -> Any:
        """Return the value of a key that counts something: an integer, or the default.

        Raises:
            ConfigError: As `take`, and where it is less than `least`.
        """
        value = self.take(key, int, default, aliases=aliases)
        if value is not None and value < least:
            raise ConfigError(f"{self.file}: key '{key}' is {value}; it has to be at least {least}")
        return value

    def expect(self, key: str, value: Any, why: str) -> None:
        """Insist that `key` is absent or has the one supported value; a tuple has several."""
        self._known.add(key)
        values = value if isinstance(value, tuple) else (value,)
        if self.data.get(key) is not None and self.data[key] not in values:
            raise ConfigError(
                f"{self.file}: key '{key}' is {self.data[key]!r}; only {values[0]!r} is supported: {why}"
            )

    def expect_all(self, table: Mapping[str, tuple[Any, str]]) -> None:
        """Insist on a table of keys -> (supported value, why)."""
        for key, (value, why) in table.items():
            self.expect(key, value, why)

    def expect_layers(self, key: str, count: int, kind: Callable[[int], str], why: str) -> None:
        """Insist that a list of the layers' kinds is absent or says of each what the model has."""
        self._known.add(key)
        said = self.data.get(key)
        if said is None:
            return
        right = isinstance(said, list) and len(said) == count
        if not right or any(each != kind(layer) for layer, each in enumerate(said)):
            raise ConfigError(
                f"{self.file}: key '{key}' does not fit the {count:,} layers of the model: {why}"
            )

    def ignore(self, reasons: Mapping[str, str]) -> None:
        """Accept these keys without using them; each has its reason."""
        self._known.update(reasons)

    def ignore_bookkeeping(self) -> None:
        """Accept what no config.json means for a computation (macmoe.config_keys)."""
        self._bookkeeping = reason_to_ignore

    def finish(self) -> None:
        """Raise UnknownKeysError if any key that says something was neither taken nor ignored."""
        hints = {} if self._hints is None else self._hints
        for key, value in self.data.items():
            if key in self._known or value is None:
                continue
            harmless = self._bookkeeping(key, value)
            # `trunkate: false` is a slip, not a switch that these models do not have.
            hint = misspelled(key, self._known) if is_empty(value) or not harmless else ""
            if hint or not harmless:
                hints[key] = hint
        if not hints:
            return
        reader, name = self._outer or (None, "")
        if reader is None or reader._hints is None:
            can_be_allowed = self._bookkeeping is reason_to_ignore  # a config.json, not a file beside it
            raise UnknownKeysError(self.file, hints, can_be_allowed=can_be_allowed)
        reader._hints.update({f"{name}.{key}": hint for key, hint in hints.items()})
