"""The shape of the project: what is packed, how files look, what an import costs, which names are public."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import macmoe
from macmoe.chat import FORMATS
from macmoe.families import FAMILIES
from macmoe.inspection import ATTENTION
from macmoe.location import BUILT_IN
from macmoe_converters.conversion import TABLES
from tests.conftest import ROOT

PACKAGES = ("macmoe", "converters/macmoe_converters")
PACKAGE_FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
ALL_FILES = PACKAGE_FILES + sorted(
    path for folder in ("tests", "examples") for path in (ROOT / folder).rglob("*.py")
)
MAX_LINES = 400
HEAVY = ("mlx", "numpy", "tokenizers", "click", "rich", "jaxtyping", "safetensors", "huggingface_hub")
# Joined here, so that this file names no registry either.
REGISTRY_HOSTS = [
    ".".join(parts).encode()
    for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("download", "pytorch", "org"))
]


def module_name(path: Path) -> str:
    """Return the dotted name under which a file of the two packages is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("converters", "__init__"))


def committed_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_wheel_holds_exactly_the_two_packages(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    top_level = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"macmoe", "macmoe_converters"}


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "a module docstring is missing"


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=module_name)
def test_public_names_of_a_module_exist(path):
    if path.name == "__main__.py":
        pytest.skip("running it is its purpose")
    module = importlib.import_module(module_name(path))
    missing = [name for name in getattr(module, "__all__", ()) if getattr(module, name, None) is None]
    assert missing == []


def modules_of_the_package():
    files = {path.stem for path in (ROOT / "macmoe").glob("*.py")} - {"__init__", "__main__"}
    return files | {path.parent.name for path in (ROOT / "macmoe").glob("*/__init__.py")}


def test_the_layers_are_the_modules():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (layers,) = (each["layers"] for each in contracts["contracts"] if each["id"] == "layers")
    assert set(re.findall(r"\w+", " ".join(layers))) == modules_of_the_package() | {"__main__"}


def test_the_map_shows_every_module():
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("```text\nmacmoe/\n")[2]
    shown = set(re.findall(r"  (\w+)(?:\.py|/)", tree.partition("converters/")[0]))
    assert shown - {"assets", *BUILT_IN.values()} == modules_of_the_package() - {"version"}


def test_public_names_are_listed_once_and_in_order():
    assert macmoe.__all__ == sorted(macmoe.__all__)
    assert dir(macmoe) == macmoe.__all__


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'chatt'"):
        macmoe.chatt  # noqa: B018


@pytest.mark.parametrize(
    ("imports", "allowed"),
    [("macmoe", ()), ("macmoe.cli", ("click",))],
)
def test_import_is_light(imports, allowed):
    program = f"import sys, {imports}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert tuple(run.stdout.split()) == allowed


def test_the_registries_know_the_same_families():
    families = {family.name for family in FAMILIES.values()}
    assert set(FORMATS) == set(TABLES) == set(ATTENTION) == set(BUILT_IN.values()) == families


def test_no_committed_file_names_a_package_registry():
    offenders = {
        str(path.relative_to(ROOT))
        for path in committed_files()
        if any(host in path.read_bytes() for host in REGISTRY_HOSTS)
    }
    assert offenders == set()
