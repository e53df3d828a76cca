"""Check what g++ cannot see of a Metal text: the address spaces of its pointers.

Metal's compiler is a Clang; its words `device`, `constant`, `threadgroup` and `thread` are Clang's address
spaces. So Clang's parser refuses what Metal would refuse: a pointer to one kind of memory where another is
meant. That every pointer and reference names its kind, which Metal demands, is looked up in the syntax tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from clang import cindex

from tests.metal.text import COMMENT, VARIABLES

INCLUDE = Path(__file__).parent / "declarations"
ARGUMENTS = ["-x", "c++", "-std=c++17", "-nostdinc", f"-I{INCLUDE}", "-Wno-everything"]
FILE = "kernel.metal"
CONSTRUCTED = re.compile(r"\b((?:float|half|u?char|u?short|u?int|ulong)[234])\(")
SPACES = re.compile(r"\b(device|constant|threadgroup|thread|auto)\b")
BOUNDARY = re.compile(r"[;{},]|\((?!&)")  # before a declaration
POINTERS = {cindex.TypeKind.POINTER, cindex.TypeKind.LVALUEREFERENCE, cindex.TypeKind.INCOMPLETEARRAY}
DECLARATIONS = {cindex.CursorKind.PARM_DECL, cindex.CursorKind.VAR_DECL, cindex.CursorKind.FIELD_DECL}


def mistakes(text: str) -> list[str]:
    """Return what Metal would not accept, a line each."""
    text = COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    text = VARIABLES.sub(r"static threadgroup \1 \2;", text)
    text = CONSTRUCTED.sub(r"make_\1(", text)
    unit = cindex.Index.create().parse(FILE, args=ARGUMENTS, unsaved_files=[(FILE, text)])
    found = [
        f"{problem.location.line}: {problem.spelling}"
        for problem in unit.diagnostics
        if problem.severity >= cindex.Diagnostic.Error
    ]
    for top in unit.cursor.get_children():
        if str(top.location.file) == FILE:
            found += [f"{cursor.location.line}: {problem}" for cursor, problem in _problems(top, text)]
    return found


def _problems(cursor: cindex.Cursor, text: str) -> Iterator[tuple[cindex.Cursor, str]]:
    children = list(cursor.get_children())
    if cursor.kind in DECLARATIONS and cursor.type.get_canonical().kind in POINTERS:
        declared = text[max(0, cursor.location.offset - 200) : cursor.location.offset]
        if not SPACES.search(BOUNDARY.split(declared)[-1]):
            yield cursor, f"{cursor.spelling} is a pointer or reference without an address space"
    if cursor.kind == cindex.CursorKind.CSTYLE_CAST_EXPR and children:
        to, source = _space(cursor.type), _space(children[-1].type)
        if None not in {to, source} and to != source:
            yield cursor, f"a cast from address space {source} to {to}"
    for child in children:
        yield from _problems(child, text)


def _space(kind: cindex.Type) -> int | None:
    """Return the address space that a pointer points into, None for other types."""
    canonical = kind.get_canonical()
    return canonical.get_pointee().get_address_space() if canonical.kind == cindex.TypeKind.POINTER else None
