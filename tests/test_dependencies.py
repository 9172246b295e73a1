"""Whatever is imported is declared in pyproject.toml: here, or in the extra that a part needs."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRA_OF = {
    "nuswide/data/download.py": "drive",
    "nuswide/models": "timm",
    "nuswide/deployment/serve": "serve",
    "nuswide/deployment/batch/spark.py": "spark",
    "nuswide/training/sweep": "sweep",
    "tests": "dev",
    "benchmarks": "dev",
}
PROVIDED_BY = packages_distributions()
OURS = {"nuswide"} | {
    path.stem for path in [*ROOT.glob("tests/**/*"), *ROOT.glob("benchmarks/*.py")]
}


def declared(extra: str | None) -> set[str]:
    """The distributions of the dependencies and of an extra, with the extras that it includes."""
    texts = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found: set[str] = set() if extra is None else declared(None)
    for requirement in map(Requirement, texts):
        found.add(canonicalize_name(requirement.name))
        if requirement.name == PROJECT["name"]:
            found = found.union(*map(declared, requirement.extras))
    return found


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports anywhere, less Python's own and the project's."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        for name in (name.partition(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name not in OURS:
                yield name


@pytest.mark.parametrize("folder", ["nuswide", "tests", "benchmarks"])
def test_every_imported_package_is_declared(folder: str) -> None:
    missing = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        inside = path.relative_to(ROOT).as_posix()
        extras = [extra for part, extra in EXTRA_OF.items() if inside.startswith(part)]
        allowed = declared(extras[0] if extras else None)
        for name in imported(path):
            distributions = {canonicalize_name(d) for d in PROVIDED_BY.get(name, [name])}
            if not distributions & allowed:
                missing.add(f"{inside} imports {name}, of {' or '.join(distributions)}")
    assert not missing
