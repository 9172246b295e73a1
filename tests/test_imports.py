"""The layers of the package, and who may use which library; reads the code, runs none of it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "nuswide"
LAYERS = (
    "config distributed manifest memory pages spool tagger unpack".split(),
    "auto_augment cache checkpoint download heads importers interrupt labels losses metrics "
    "models protocols sample scores transforms".split(),
    "counts data optim plots registry sampling tracking".split(),
    "bulk duplicates evaluate feed prepare recorded runs serve step".split(),
    "audit card compare promote report train".split(),
    "bundle outcome".split(),
    "jobs judge".split(),
    "quantize reproduce sweep".split(),
    ["cli"],
    ["__main__"],
)
LAYER_OF = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
# A model is a head, which may be made of train's labels, and the normalisation that transforms has.
SAME_LAYER = {("models", "transforms"), ("models", "heads"), ("models", "labels")}
SAME_LAYER |= {("heads", "labels"), ("transforms", "auto_augment")}
ONLY_IN: dict[str, set[str]] = {
    "mlflow": {"tracking", "spool", "bundle", "registry", "serve", "recorded", "promote"}
    | {"tagger", "compare", "reproduce", "quantize", "sweep", "bulk", "cli"},
    "optuna": {"sweep"},
    "sqlalchemy": {"sweep"},
    "matplotlib": {"plots", "tracking", "compare", "pages", "audit", "report", "sweep"},
    "scipy": {"metrics", "compare"},
    "sklearn": set(),  # the tests' oracle: what it is compared with does not lean on it
    "onnxruntime": {"tagger", "quantize"},
    "pyarrow": {"bulk"},
    "pyspark": {"bulk"},
}
# A module past 400 lines is a package of the same name, with one layer.
MODULES = sorted(
    path.stem for path in PACKAGE.glob("[!_.]*") if path.suffix == ".py" or path.is_dir()
) + ["__main__"]


def files_of(module: str) -> list[Path]:
    folder = PACKAGE / module
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imports_of(module: str) -> set[str]:
    """Everything that a module imports, `nuswide.x` and `torch.y` alike, wherever in the file."""
    found: set[str] = set()
    nodes = (n for path in files_of(module) for n in ast.walk(ast.parse(path.read_text())))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} uses a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_layer() -> None:
    assert set(MODULES) == set(LAYER_OF)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    own = {name.split(".")[1] for name in imports_of(module) if name.startswith("nuswide.")}
    for other in own - {"__version__", module}:
        is_lower = LAYER_OF[other] < LAYER_OF[module]
        assert is_lower or (module, other) in SAME_LAYER, f"{module} imports {other}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_modules(library: str) -> None:
    users = {m for m in MODULES if any(i.split(".")[0] == library for i in imports_of(m))}
    assert users <= ONLY_IN[library]


def test_the_command_line_imports_nothing_heavy_at_the_top() -> None:
    for path in (path for module in ("cli", "config", "__main__") for path in files_of(module)):
        tree = ast.parse(path.read_text())
        at_top = {
            name.split(".")[0]
            for node in tree.body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([a.name for a in node.names] + [getattr(node, "module", None) or ""])
        }
        assert not at_top & {"torch", "mlflow", "numpy", "pandas", "matplotlib", "yaml"}


def test_the_served_module_needs_no_other_module_and_no_torch() -> None:
    assert not {i for i in imports_of("tagger") if i.split(".")[0] in ("nuswide", "torch")}
