"""MLproject and conda.yaml agree with the command line and with pyproject.toml."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from mlflow.projects import _project_spec
from packaging.requirements import Requirement
from packaging.version import Version

from nuswide import cli

ROOT = Path(__file__).resolve().parent.parent
PROJECT = _project_spec.load_project(str(ROOT))
ENTRY_POINTS = sorted(yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"])


def pins() -> dict[str, list[Requirement]]:
    """The pins of conda.yaml by name; a package can have one for each Python."""
    found: dict[str, list[Requirement]] = {}
    packages = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    for pin in map(Requirement, packages):
        found.setdefault(pin.name.lower(), []).append(pin)
    return found


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_renders_to_a_command_that_parses(name: str) -> None:
    rendered = PROJECT.get_entry_point(name).compute_command({}, None)
    python, dash_m, module, command, *arguments = shlex.split(rendered)
    assert (python, dash_m, module) == ("python", "-m", "nuswide")
    target = cli.main.commands[command]
    target.make_context(command, arguments)  # raises on an unknown option or a bad default


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_declared_parameter_is_used_by_the_command(name: str) -> None:
    entry_point = PROJECT.get_entry_point(name)
    for parameter in entry_point.parameters:
        assert f"{{{parameter}}}" in entry_point.command


def test_a_field_given_as_p_reaches_the_command_line() -> None:
    rendered = PROJECT.get_entry_point("main").compute_command(
        {"lr": "1e-4", "batch_size": "8"}, None
    )
    context = cli.main.commands["train"].make_context("train", shlex.split(rendered)[4:])
    assert context.params["lr"] == "1e-4" and context.params["batch_size"] == "8"


def test_a_misspelt_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(click.NoSuchOption, match="--lr"):
        cli.main.commands["train"].make_context("train", ["--lrr", "1e-4"])


def test_conda_yaml_pins_every_dependency_of_pyproject_exactly() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, declared):
        for pin in pins()[requirement.name.lower()]:
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert requirement.specifier.contains(specifier.version), requirement.name


def test_conda_yaml_pins_nothing_that_pyproject_does_not_bring() -> None:
    """Walks what the installed packages require, so that a dropped dependency leaves no pin."""
    from importlib.metadata import PackageNotFoundError, requires, version

    (pinned,) = pins()["torch"]
    if Version(version("torch")) < Version(next(iter(pinned.specifier)).version):
        pytest.skip("needs the torch that conda.yaml pins: an older one requires other packages")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = project["dependencies"] + extras["serve"] + extras["sweep"]
    todo = [(Requirement(d).name, frozenset(Requirement(d).extras)) for d in declared]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, needed):
            environments = [{"extra": extra} for extra in ("", *extras)]
            marker = requirement.marker
            if (
                marker is None
                or "extra" not in str(marker)
                or any(map(marker.evaluate, environments))
            ):
                todo.append((requirement.name, frozenset(requirement.extras)))
    reachable = {re.sub(r"[-_.]+", "-", name).lower() for name, _ in seen}
    assert set(pins()) <= reachable


def test_conda_yaml_names_one_python_that_pyproject_allows() -> None:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    python = next(d for d in conda["dependencies"] if str(d).startswith("python="))
    allowed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert Requirement(f"python{allowed}").specifier.contains(python.removeprefix("python="))
