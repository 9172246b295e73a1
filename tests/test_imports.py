"""The order of the folders, and who may use which library; reads the code, runs none of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nuswide"
# A folder imports only from those above it; the modules of TOP stand above all of them.
FOLDERS = "core metrics data models reporting tracking evaluation deployment training cli".split()
TOP = ("config", "experiment_file", "tagger", "values")
ONLY_IN: dict[str, tuple[str, ...]] = {
    "mlflow": ("tracking", "tagger", "deployment"),
    "matplotlib": ("reporting.plots",),
    "onnxruntime": ("tagger", "deployment.quantize"),
    "optuna": ("training.sweep",),
    "pyarrow": ("deployment.batch",),
    "pyspark": ("deployment.batch",),
    "scipy": ("data.stratify", "metrics", "evaluation.compare"),
    "sklearn": (),  # the tests' oracle: what it is compared with does not lean on it
    "sqlalchemy": ("training.sweep",),
    "timm": ("models",),
    "uvicorn": ("deployment.serve",),
}
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_in(source: str) -> Iterator[str]:
    """Everything that a module imports, `nuswide.x.y` and `torch.z` alike, wherever it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_used(source: str) -> set[str]:
    """The modules of this package that a module imports, without `nuswide.`."""
    found = set()
    for name in imports_in(source):
        if name.startswith("nuswide."):
            own = name.removeprefix("nuswide.")
            found.add(own if own in FILES else own.rpartition(".")[0])
    return found


def upward(module: str, source: str) -> list[str]:
    """What a module imports from a folder that does not stand above its own."""

    def place(name: str) -> int:
        folder = name.split(".")[0]
        return FOLDERS.index(folder) if folder in FOLDERS else -1

    return [used for used in modules_used(source) if place(used) > place(module)]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; empty if there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for used in sorted(graph.get(module, ())):
            if found := visit(used, [*path, module]):
                return found
        done.add(module)
        return []

    return next(filter(None, (visit(module, []) for module in graph)), [])


def test_every_module_is_in_one_of_the_folders() -> None:
    assert {name.split(".")[0] for name in FILES} == {"__init__", "__main__", *FOLDERS, *TOP}


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"__main__"}))
def test_a_module_imports_only_from_folders_above_its_own(module: str) -> None:
    assert upward(module, FILES[module].read_text(encoding="utf-8")) == []


def test_a_planted_upward_import_is_found() -> None:
    planted = "def late():\n    from nuswide.training.loop import fit\n"
    assert upward("data.cache", planted) == ["training.loop"]
    assert upward("cli.train", planted) == []
    assert upward("config", "from nuswide.core import distributed") == ["core.distributed"]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {m: modules_used(path.read_text(encoding="utf-8")) - {m} for m, path in FILES.items()}
    assert circle(graph) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_modules(library: str) -> None:
    for module, path in FILES.items():
        libraries = {name.split(".")[0] for name in imports_in(path.read_text(encoding="utf-8"))}
        is_allowed = any(f"{module}.".startswith(f"{place}.") for place in ONLY_IN[library])
        assert library not in libraries or is_allowed, module


def test_models_and_reporting_do_not_know_each_other() -> None:
    for module, path in FILES.items():
        used = {name.split(".")[0] for name in modules_used(path.read_text(encoding="utf-8"))}
        assert not (module.startswith("models.") and "reporting" in used), module
        assert not (module.startswith("reporting.") and "models" in used), module


def test_the_command_line_imports_nothing_heavy_at_the_top() -> None:
    for module, path in FILES.items():
        if module.split(".")[0] not in ("cli", "config", "__main__"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top = {
            name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([a.name for a in node.names] + [getattr(node, "module", None) or ""])
        }
        assert not at_top & {"torch", "mlflow", "numpy", "pandas", "matplotlib", "yaml"}, module


def test_the_served_module_needs_no_other_module_and_no_torch() -> None:
    used = {name.split(".")[0] for name in imports_in(FILES["tagger"].read_text(encoding="utf-8"))}
    assert not used & {"nuswide", "torch"}
