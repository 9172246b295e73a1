"""The examples in the package's docstrings, run as they stand there."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest
from conftest import ROOT

from nuswide.data.dataset import load_manifest
from nuswide.data.sample import draw_sample

FILES = sorted((ROOT / "nuswide").rglob("*.py"))
WITH_EXAMPLES = [path for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_give_what_they_show(path: Path, tmp_path: Path) -> None:
    draw_sample(tmp_path / "sample", images=12, size_px=32, test_fraction=0.25)
    given = {"folder": tmp_path, "manifest": load_manifest(str(tmp_path / "sample"))}
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    result = doctest.testmod(importlib.import_module(name), extraglobs=given)
    assert result.attempted and not result.failed


def docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [ast.get_docstring(n) or "" for n in ast.walk(tree) if isinstance(n, kinds)]


def test_no_example_is_left_out() -> None:
    """An indented block without a prompt would be an example that nobody runs."""
    for path in FILES:
        for text in docstrings(path):
            for block in text.split("\n\n"):
                if block.startswith("    "):
                    assert block.startswith("    >>> "), (path, block)
