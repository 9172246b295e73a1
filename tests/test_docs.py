"""The README's commands are those that MLproject, the command line and the pins know."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from mlflow.projects import _project_spec

from nuswide import cli
from nuswide.config import Config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
MLFLOW_RUNS = [
    part for line in COMMANDS for part in line.split(" && ") if part.startswith("mlflow run ")
]
PROJECT = _project_spec.load_project(str(ROOT))


def option(words: list[str], name: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == name]


def test_the_two_commands_are_there() -> None:
    assert re.search(r"<!-- main -->\n```bash\npip install uv mlflow==\S+ && mlflow run", README)
    assert re.search(r"<!-- tests -->\n```bash\npip install uv && uv run .*pytest.*\n```", README)


@pytest.mark.parametrize("command", MLFLOW_RUNS)
def test_an_mlflow_run_command_renders_to_one_that_parses(command: str) -> None:
    words = shlex.split(command)
    entry_point = (option(words, "-e") or ["main"])[0]
    params = dict(given.split("=", 1) for given in option(words, "-P"))
    rendered = PROJECT.get_entry_point(entry_point).compute_command(params, None)
    _, _, _, name, *arguments = shlex.split(rendered)
    cli.main.commands[name].make_context(name, arguments)
    if name == "train":
        assert set(params) <= {*Config.__dataclass_fields__, "experiment"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python -m nuswide")])
def test_a_command_of_the_package_parses(command: str) -> None:
    _, _, _, name, *arguments = shlex.split(command)
    cli.main.commands[name].make_context(name, arguments)


def test_mlflow_is_pinned_as_in_conda_yaml() -> None:
    pins = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    (pinned,) = [pin for pin in pins if pin.startswith("mlflow==")]
    assert set(re.findall(r"mlflow==[\d.]+", README)) == {pinned}


def test_the_extra_of_the_test_command_exists() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for line in COMMANDS:
        assert set(option(shlex.split(line), "--extra")) <= set(extras)


def test_json_blocks_are_json() -> None:
    for block in re.findall(r"```json\n(.*?)```", README, flags=re.DOTALL):
        json.loads(block)


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
