"""What CONTRIBUTING shows is all that a loss, a head, a metric and an importer take."""

import json
import re
import shutil
import sys
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, TINY, Workspace, run_id_of

from nuswide.data.dataset import load_manifest

pytestmark = pytest.mark.slow

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n# (nuswide/\S+\.py)\n(.*?)```", TEXT, flags=re.DOTALL)


def write_lines(data: Path, folder: Path) -> Path:
    """A data set's annotations in the form that the worked example reads."""
    manifest = load_manifest(data)
    rows = (
        {
            "image": name,
            "labels": [manifest.labels[i] for i in manifest.targets[row].nonzero()[0]],
            "split": str(manifest.splits[row]),
        }
        for row, name in enumerate(manifest.names)
    )
    folder.mkdir()
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for name in manifest.names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(manifest.root / name, target)
    return folder


def test_the_worked_examples_are_trained_with_and_recorded(tmp_path: Path, tiny_data: Path) -> None:
    shutil.copytree(ROOT / "nuswide", tmp_path / "nuswide")
    for name, code in BLOCKS:
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{code}")
    assert len(BLOCKS) == 5
    data = write_lines(tiny_data, tmp_path / "photos")
    workspace = Workspace(tmp_path)
    fields = TINY | {
        "data": str(data), "loss": "squared_hinge", "head": "mean_max", "registered_model": "none",
    }  # fmt: skip
    command = [sys.executable, "-m", "nuswide", "train"]
    command += [x for name, value in fields.items() for x in (f"--{name}", value)]
    done = workspace.run("env", f"PYTHONPATH={tmp_path}", *command)
    with workspace.tracked():
        run = mlflow.get_run(run_id_of(done))
    assert 0 <= run.data.metrics["test/samples/jaccard"] <= 1
    assert run.data.params["head"] == "mean_max"
