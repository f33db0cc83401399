"""What the packaging promises: two complete, pinned stacks that name no index, and no undeclared import."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
FLOWER = [Requirement(line) for line in PROJECT["optional-dependencies"]["flower"]]
LOCK = (ROOT / "requirements.lock").read_text().splitlines()


def pip_section() -> list[str]:
    """The lines of environment.yml that pip gets."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return next(entry["pip"] for entry in entries if isinstance(entry, dict))


def pins(lines: list[str]) -> dict[str, str]:
    """name -> version of the lines `name==version`, with or without a marker; comments are left out."""
    requirements = [Requirement(line) for line in lines if not line.lstrip().startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


STACKS = {"requirements.lock": pins(LOCK), "environment.yml": pins(pip_section())}


def imported_modules(folder: Path) -> set[str]:
    """Top-level names of all absolute imports in a folder's Python files, also those inside functions.

    Not those of fedreft_lib/flower, an extra that has to be asked for itself.
    """
    files = [
        path for path in folder.rglob("*.py") if folder.name == "flower" or "flower" not in path.relative_to(ROOT).parts
    ]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(), str(path)))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in plain | froms}


def test_lock_holds_exact_versions_and_no_address():
    pin = re.compile(r"[a-z0-9.-]+==[a-z0-9.]+( ; [a-zA-Z0-9_.' <>=!()]+)?")
    assert [line for line in LOCK if not (pin.fullmatch(line) or line.startswith("#"))] == []
    assert [line for line in LOCK if line.startswith("#") and ("/" in line or "--" in line)] == []


@pytest.mark.parametrize("stack", STACKS)
def test_stack_pins_torch_and_leaves_its_build_to_the_platform(stack):
    assert STACKS[stack]["torch"] == "2.13.0"
    assert [name for name in STACKS[stack] if re.match("nvidia|cuda|triton", name)] == []


@pytest.mark.parametrize("stack", STACKS)
def test_stack_pins_every_direct_dependency_within_its_bounds(stack):
    asked = RUNTIME + DEV + (FLOWER if stack == "requirements.lock" else [])
    if stack == "environment.yml":
        asked = [requirement for requirement in asked if requirement.name != "import-linter"]  # `make lint` runs it
    pinned = {requirement: STACKS[stack].get(canonicalize_name(requirement.name)) for requirement in asked}
    assert [str(asks) for asks, pin in pinned.items() if pin is None or pin not in asks.specifier] == []


def test_pinned_stack_is_pyrefts_own():
    assert STACKS["environment.yml"]["transformers"] == "4.45.1"
    assert STACKS["environment.yml"]["pyreft"] == "0.1.0"


def test_torch_is_installed_before_what_builds_on_it():
    assert pip_section()[0].startswith("torch==")


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("fedreft_lib", RUNTIME), ("fedreft_lib/flower", RUNTIME + FLOWER), ("tests", RUNTIME + DEV + FLOWER)],
)
def test_every_import_is_a_declared_dependency(folder, declared):
    providers = packages_distributions()
    declared_names = {canonicalize_name(r.name) for r in declared}
    own = {"fedreft_lib", "tests"} | {path.stem for path in (ROOT / "tests").rglob("*.py")}
    third_party = imported_modules(ROOT / folder) - sys.stdlib_module_names - own
    undeclared = {
        module
        for module in third_party
        if declared_names.isdisjoint(canonicalize_name(name) for name in providers.get(module, [module]))
    }
    assert undeclared == set()


def test_citation_names_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
