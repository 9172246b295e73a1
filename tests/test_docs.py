"""The documentation's commands, options, links and numbers are those that the project has."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from mlflow.projects import _project_spec

from nuswide import __version__, cli
from nuswide.config import Config

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
}
README = PAGES["README.md"]
PROJECT = _project_spec.load_project(str(ROOT))


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks of a language, each with its page."""
    return [
        (page, block)
        for page, text in PAGES.items()
        for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    ]


COMMANDS = [line for _, block in blocks("bash") for line in block.splitlines() if line]
PARTS = sorted({part for line in COMMANDS for part in line.split(" && ")})
MLFLOW_RUNS = [part for part in PARTS if part.startswith("mlflow run ")]
# `nuswide X`, and what torchrun and spark-submit start.
STARTS = re.compile(r"(?:nuswide|torchrun .* -m nuswide|spark-submit .*__main__\.py) (.*)")
OF_THE_PACKAGE = [(part, found[1]) for part in PARTS if (found := STARTS.match(part))]


def option(words: list[str], name: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == name]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_two_commands_are_there() -> None:
    assert re.search(r"<!-- main -->\n```bash\npip install uv mlflow==\S+ && mlflow run", README)
    assert re.search(r"<!-- tests -->\n```bash\npip install uv && uv run .*pytest.*\n```", README)
    assert re.search(r"<!-- curl -->\n```bash\ncurl ", README)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("page", PAGES)
def test_bash_blocks_are_bash(page: str) -> None:
    text = "\n".join(block for name, block in blocks("bash") if name == page)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


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


@pytest.mark.parametrize(("command", "rest"), OF_THE_PACKAGE, ids=[c for c, _ in OF_THE_PACKAGE])
def test_a_command_of_the_package_parses(command: str, rest: str) -> None:
    name, *arguments = shlex.split(rest)
    cli.main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_the_text_has_the_options_that_it_is_given(page: str) -> None:
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for name, rest in re.findall(r"`nuswide ([a-z]+)\b([^`]*)`", prose):
        known = {o for p in cli.main.commands[name].params for o in p.opts} | {"--help"}
        assert set(re.findall(r"--\w+", rest)) <= known, f"nuswide {name}{rest}"


@pytest.mark.parametrize("page", PAGES)
def test_an_option_in_the_text_is_a_field_or_one_of_compare(page: str) -> None:
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    named = set(re.findall(r"`(?:-P )?([a-z_0-9]+)=[^`\s]+`", prose))
    of_compare = {param.name for param in cli.main.commands["compare"].params}
    assert named <= {*Config.__dataclass_fields__, *of_compare, "experiment", "field"}


@pytest.mark.parametrize("page", PAGES)
def test_a_command_has_one_spelling(page: str) -> None:
    assert not re.search(r"python3? -m nuswide", PAGES[page])


def test_every_script_and_experiment_that_is_named_is_there() -> None:
    for page, text in PAGES.items():
        for path in re.findall(r"(?:benchmarks|experiments|nuswide|tests|\.ci)/[\w./]*\w/?", text):
            assert (ROOT / path).exists() or is_an_example(path), f"{page}: {path}"
    for name in re.findall(r"`(\w+\.py)\b", PAGES["docs/benchmarks.md"]):
        assert (ROOT / "benchmarks" / name).exists(), name


def is_an_example(path: str) -> bool:
    """Whether a file is one that CONTRIBUTING shows how to add."""
    return f"# {path}\n" in PAGES["CONTRIBUTING.md"]


def test_mlflow_is_pinned_as_in_conda_yaml() -> None:
    pins = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    (pinned,) = [pin for pin in pins if pin.startswith("mlflow==")]
    for page, text in PAGES.items():
        assert set(re.findall(r"mlflow==[\d.]+", text)) <= {pinned}, page
        assert {f"mlflow=={v}" for v in re.findall(r"mlflow (\d[\d.]*\d)", text)} <= {pinned}, page


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for line in COMMANDS:
        assert set(option(shlex.split(line), "--extra")) <= set(extras)
    for page, text in PAGES.items():
        assert set(re.findall(r"pip install '\.\[(\w+)\]'", text)) <= set(extras), page


def test_json_yaml_and_python_blocks_parse() -> None:
    for _, block in blocks("json"):
        json.loads(block)
    for _, block in blocks("yaml"):
        yaml.safe_load(block)
    for page, block in blocks("python"):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), target


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    assert [page for page in PAGES if page.startswith("docs/") and page not in README] == []


def test_the_readmes_results_are_those_of_the_study() -> None:
    table = (ROOT / "experiments/study/comparison.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if "|" in line}
    for name, key in {
        "the article's": "article_val", "strong": "strong", "strong, `head=gcn`": "gcn",
        "strong, `loss=asl`": "asl", "strong, `loss=zlpr`": "zlpr",
    }.items():  # fmt: skip
        (shown,) = re.findall(rf"^\| {re.escape(name)} \|(.*)$", README, flags=re.MULTILINE)
        for figure in re.findall(r"[+−]?\d\.\d{3}", shown):
            assert figure in rows[key], f"{name}: {figure}"


@pytest.mark.parametrize("study", ["study", "study_resnext50", "study_images"])
def test_the_study_tables_are_those_on_file(study: str) -> None:
    table = (ROOT / "experiments" / study / "comparison.md").read_text(encoding="utf-8").strip()
    assert f"<!-- {study} -->\n{table}\n<!-- /{study} -->" in PAGES["docs/results.md"]


def test_the_version_is_one() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in declared["project"]
    assert declared["tool"]["hatch"]["version"]["path"] == "nuswide/__init__.py"
    assert (ROOT / "nuswide/py.typed").exists()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    released = re.findall(r"^## (\d\S+) - (\d{4}-\d\d-\d\d)$", changes, flags=re.MULTILINE)
    assert released[0] == (__version__, str(citation["date-released"]))
    assert citation["version"] == __version__


def test_the_map_has_every_module() -> None:
    page = PAGES["docs/architecture.md"]
    shown = set()
    for folder, table in re.findall(
        r"### `(nuswide/\w+/)`.*?\n(.*?)(?=\n#)", page, flags=re.DOTALL
    ):
        shown |= {folder + module for module in re.findall(r"^\| `([\w/]+\.py)` \|", table, re.M)}
    modules = {
        str(path.relative_to(ROOT))
        for path in ROOT.glob("nuswide/*/**/*.py")
        if path.name != "__init__.py" or len(path.read_text(encoding="utf-8").splitlines()) > 1
    }
    assert (sorted(shown - modules), sorted(modules - shown)) == ([], [])
