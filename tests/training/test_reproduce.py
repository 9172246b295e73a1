"""A run trained again, by a real process; what is said of figures that differ."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import Trained, run_id_of

from nuswide.training.reproduce import Dependency, _dependencies_text, _verdict, difference_rows

pytestmark = pytest.mark.slow

NAN = float("nan")


@pytest.fixture(autouse=True)
def tracking(trained: Trained) -> Iterator[None]:
    with trained.workspace.tracked():
        yield


def test_a_run_trained_again_on_the_same_machine_is_identical(trained: Trained) -> None:
    done = trained.workspace.nuswide("reproduce", trained.run_id)
    again = mlflow.get_run(run_id_of(done))
    assert again.info.run_id != trained.run_id
    assert again.data.tags["nuswide.reproduces"] == trained.run_id
    assert "metrics are identical; the weights are identical." in done.stdout
    assert "DIFFERS" not in done.stdout and "as recorded  data digest" in done.stdout
    recorded = mlflow.get_run(trained.run_id).data.metrics
    for name in ("test/map", "val/micro/f1", "train/loss"):
        assert again.data.metrics[name] == recorded[name]
    assert "It was not registered" in done.stdout
    text = mlflow.artifacts.load_text(f"runs:/{again.info.run_id}/reproduction.txt")
    assert text.splitlines()[-1] in again.data.tags["mlflow.note.content"]


def test_other_data_are_told_and_so_are_the_figures_that_differ(
    trained: Trained, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(trained.data, folder)
    content = json.loads((folder / "train.json").read_text())
    for sample in content["samples"]:
        sample["image_labels"] = sample["image_labels"][:1]
    (folder / "train.json").write_text(json.dumps(content))
    one, other = (folder / "images" / f"000{i}.jpg" for i in range(2))
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(before)
    done = trained.workspace.in_process("reproduce", trained.run_id, "--data", str(folder))
    assert "DIFFERS      data digest" in done.stdout
    assert "metrics differ" in done.stdout
    assert "not as recorded: data digest, image files." in done.stdout


@pytest.mark.parametrize("run_id", ["0" * 32, "nothing"])
def test_a_run_that_is_not_there_is_told_in_one_line(trained: Trained, run_id: str) -> None:
    done = trained.workspace.in_process("reproduce", run_id, check=False)
    assert done.returncode == 1 and f"no run {run_id}" in done.stderr
    assert "Traceback" not in done.stderr


def test_times_are_no_figures_and_a_missing_figure_is_a_difference() -> None:
    recorded = {"test/map": 0.5, "train/seconds": 9.0, "val/tail_map": NAN}
    rows = difference_rows(recorded, {"test/map": 0.5, "train/seconds": 1.0, "val/map": 0.1})
    assert [name for name, *_ in rows] == ["test/map", "val/map", "val/tail_map"]
    assert np.isnan(rows[1][1]) and rows[1][2] == 0.1
    assert _verdict(rows, 0.0, []).startswith("1 of 3 metrics differ; the weights are identical")


def test_the_verdict_names_what_is_not_as_recorded() -> None:
    checks = [Dependency("software.torch", "2.11", "2.12"), Dependency("data digest", "a", "a")]
    assert _verdict([("test/map", 0.5, 0.5)], None, checks) == (
        "All 1 metrics are identical; the weights could not be compared."
    )
    differing = [("test/map", 0.5, 0.4)]
    verdict = _verdict(differing, 1e-3, checks)
    assert verdict.endswith("weights differ by 0.001 at most; not as recorded: software.torch.")
    assert _verdict(differing, 1e-3, checks[1:]).endswith("; all else is as recorded.")
    older = [*checks[1:], Dependency("image files", "unknown", "b")]
    assert _verdict(differing, 1e-3, older).endswith("at most; not recorded: image files.")
    assert _dependencies_text(older).splitlines()[1].startswith("not recorded image files")
