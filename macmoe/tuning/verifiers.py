"""Verifiers: whether an answer is right.

| written as | accepts an answer |
|---|---|
| `exact` | that is the reference answer, white space aside |
| `regex:PATTERN` | in which the pattern is found; a first group has to be the reference answer |
| `FILE.py:FUNCTION` | for which `FUNCTION(answer, reference)` is True; without a reference that is None |
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from macmoe.errors import UsageError
from macmoe.paths import expand_home


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifier:
    """Tells right answers from wrong ones.

    Attributes:
        name: As it is written.
        accepts: Takes an answer and the reference answer, if there is one.
    """

    name: str
    accepts: Callable[[str, str | None], bool]


def open_verifier(name: str) -> Verifier:
    """Return the verifier that a name means.

    Raises:
        UsageError: It means none, the pattern is invalid, or the file has no such function.
    """
    if name == "exact":
        return Verifier(name=name, accepts=is_exact)
    if name.startswith("regex:"):
        return Verifier(name=name, accepts=_pattern(name.removeprefix("regex:")))
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        return Verifier(name=name, accepts=_function(expand_home(file), function))
    raise UsageError(f"{name!r} is no verifier; give exact, regex:PATTERN or FILE.py:FUNCTION")


def is_exact(answer: str, reference: str | None) -> bool:
    """Compare an answer with the reference, white space aside."""
    if reference is None:
        raise UsageError("the question has no reference answer, which this verifier needs")
    return answer.split() == reference.split()


def _pattern(text: str) -> Callable[[str, str | None], bool]:
    try:
        pattern = re.compile(text, re.DOTALL)
    except re.error as error:
        raise UsageError(f"regex:{text}: not a regular expression ({error})") from None

    def verify(answer: str, reference: str | None) -> bool:
        found = pattern.search(answer)
        if found is None or not pattern.groups:
            return found is not None
        return is_exact(found[1] or "", reference)

    return verify


def _function(path: Path, name: str) -> Callable[[str, str | None], bool]:
    """Load a function of the user's own file and guard its calls."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"{path}: no such file, so there is no verifier {name}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise UsageError(f"{path}: does not load ({type(error).__name__}: {error})") from error
    function = vars(module).get(name)
    if not callable(function):
        raise UsageError(f"{path}: has no function {name}")

    def verify(answer: str, reference: str | None) -> bool:
        try:
            verdict = function(answer, reference)
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            raise UsageError(f"{path}:{name} failed ({type(error).__name__}: {error})") from error
        if not isinstance(verdict, bool):
            raise UsageError(f"{path}:{name} must return True or False, not {verdict!r}")
        return verdict

    return verify
