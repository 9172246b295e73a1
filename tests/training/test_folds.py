"""Cross-validation: its runs, their mean metrics, and folds that are stopped and continued."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pytest
from conftest import Workspace
from mlflow.entities import Run

from nuswide.config import Config
from nuswide.data.prepare import prepare
from nuswide.training import folds
from nuswide.training.folds import mean_and_deviation, note, train_folds

TINY = ("--backbone", "resnet18", "--image_size_px", "32", "--epochs", "2", "--batch_size", "8")


def test_the_mean_and_the_sample_deviation_are_over_all_folds_or_undefined() -> None:
    metrics = {0: {"val/map": 0.5, "val/lrap": 0.5}, 1: {"val/map": 0.6}, 2: {"val/map": 0.7}}
    assert mean_and_deviation(metrics, "val/map") == pytest.approx((0.6, 0.1))
    assert np.isnan(mean_and_deviation(metrics, "val/lrap")).all()
    assert mean_and_deviation({0: {"val/map": 0.5}}, "val/map")[0] == 0.5
    assert np.isnan(mean_and_deviation({}, "val/map")).all()


def test_a_page_begins_with_the_means() -> None:
    """MLflow's page shows 150 px, of which the upper 60 clearly: three lines."""
    metrics = {fold: {"val/map": 0.5 + fold / 10, "test/micro/f1": 0.25} for fold in range(3)}
    first, val, test, *_ = note(metrics, n_folds=3).split("\n\n")
    assert first == "**Mean ± standard deviation of 3 folds**"
    assert val.startswith("**On val: map 0.600 ± 0.100  micro/f1 – ± –  ")
    assert "micro/f1 0.250 ± 0.000" in test
    assert "of 3 of 5 folds so far**" in note(metrics, n_folds=5)


@pytest.mark.parametrize("changes", [{"fold": 1}, {"resume": "auto"}])
def test_fields_of_one_run_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(click.UsageError, match="leave out fold and resume"):
        train_folds(Config(folds=3, **changes), name="folds")


@pytest.mark.parametrize(("name", "is_same"), [("patience_epochs", True), ("lr", False)])
def test_folds_begun_before_a_field_existed_are_continued_if_it_has_its_default(
    name: str, is_same: bool, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(data=str(tiny_data), folds=2, lr=0.5)
    now = folds._key(config)
    before = [f for f in fields(Config) if f.name != name]
    monkeypatch.setattr(folds, "fields", lambda config: before)
    assert (folds._key(config) == now) is is_same


def test_folds_of_other_groups_are_others(tmp_path: Path) -> None:
    keys = set()
    for groups in ("xxyy", "xyxy"):
        rows = [f"{i}.jpg,sky,{group}" for i, group in enumerate(groups)]
        (tmp_path / "t.csv").write_text("\n".join(["image,labels,scene", *rows]))
        out = tmp_path / groups
        prepare(tmp_path / "t.csv", out, group_column="scene")
        keys.add(folds._key(Config(data=str(out), folds=2)))
    assert len(keys) == 2


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    yield Workspace(tmp_path)
    mlflow.set_tracking_uri(None)


def runs_of(workspace: Workspace) -> tuple[Run, dict[int, Run]]:
    """The one parent, and its children by fold."""
    mlflow.set_tracking_uri(workspace.env["MLFLOW_TRACKING_URI"])
    runs = mlflow.MlflowClient().search_runs(["0"])
    (parent,) = [run for run in runs if run.data.tags.get("nuswide.job") == "folds"]
    children = [run for run in runs if "folds.fold" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len(runs) == 1 + len(children)
    found = {int(run.data.tags["folds.fold"]): run for run in children}
    assert len(found) == len(children)
    return parent, found


def test_a_fold_that_fails_before_its_training_began_is_not_left_running(
    tiny_data: Path, workspace: Workspace
) -> None:
    command = ("folds", "--folds", "46", "--data", str(tiny_data), *TINY)
    done = workspace.in_process(*command, check=False)
    assert "40 images are too few for folds=46" in done.stderr
    parent, children = runs_of(workspace)
    assert parent.info.status == "FAILED"
    assert {run.info.status for run in children.values()} == {"KILLED"}


def test_images_that_changed_between_two_folds_are_refused(
    tiny_data: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = folds.train_and_register

    def finish_first(config: Config, *, run_id: str, **rest: Any) -> str | None:
        if config.fold:
            return train(config, run_id=run_id, **rest)
        client = mlflow.MlflowClient()
        client.set_tag(run_id, "data.images_digest", "0" * 16)  # of other files
        client.set_terminated(run_id)
        return run_id

    monkeypatch.setattr(folds, "train_and_register", finish_first)
    command = ("folds", "--folds", "2", "--data", str(tiny_data), *TINY)
    done = workspace.in_process(*command, check=False)
    assert "image files have changed since earlier folds were trained" in done.stderr
    assert "delete the run of the folds in MLflow" in done.stderr
    parent, children = runs_of(workspace)
    assert parent.info.status == "FAILED" and "val/map/mean" not in parent.data.metrics
    assert [children[fold].info.status for fold in (0, 1)] == ["FINISHED", "KILLED"]


@pytest.mark.slow
def test_folds_that_are_stopped_go_on_and_their_mean_is_the_parents(
    tmp_path: Path, tiny_data: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("folds", "--folds", "2", "--data", str(tiny_data), *TINY)
    train = folds.train_and_register

    def stop_in_second(config: Config, **rest: Any) -> str | None:
        def stop(epoch: int, value: float) -> None:
            raise KeyboardInterrupt

        return train(config, **rest, after_epoch=stop if config.fold == 1 else None)

    monkeypatch.setattr(folds, "train_and_register", stop_in_second)
    done = workspace.in_process(*command, check=False)
    assert done.returncode == 1 and done.stdout.count("interrupted; continue with") == 1
    assert "resume with" not in done.stdout
    parent, stopped = runs_of(workspace)
    assert parent.info.status == "KILLED" and "val/map/mean" not in parent.data.metrics
    assert [stopped[fold].info.status for fold in (0, 1)] == ["FINISHED", "KILLED"]

    monkeypatch.setattr(folds, "train_and_register", train)
    done = workspace.in_process(*command)
    assert "fold=0 of folds=2 is trained already" in done.stdout and "resuming run" in done.stdout
    parent, children = runs_of(workspace)
    ids = {fold: run.info.run_id for fold, run in children.items()}
    assert ids == {fold: run.info.run_id for fold, run in stopped.items()}
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    for key in ("val/map", "test/micro/f1"):
        values = [run.data.metrics[key] for run in children.values()]
        assert parent.data.metrics[f"{key}/mean"] == pytest.approx(np.mean(values))
        assert parent.data.metrics[f"{key}/std"] == pytest.approx(np.std(values, ddof=1))
    tests = {run.data.tags["data.test_digest"] for run in children.values()}
    vals = {run.data.tags["data.val_digest"] for run in children.values()}
    assert len(tests) == 1 and len(vals) == 2
    table = mlflow.artifacts.load_dict(f"runs:/{parent.info.run_id}/folds.json")
    assert [row[:2] for row in table["data"]] == [[str(f), ids[f]] for f in (0, 1)]
    names = [children[fold].info.run_name for fold in (0, 1)]
    assert names == ["fold=0 of folds=2", "fold=1 of folds=2"]
    title = "train backbone=resnet18 image_size_px=32 epochs=2 batch_size=8"
    assert parent.info.run_name == f"2 folds of tiny: {title}"
    assert not mlflow.MlflowClient().search_registered_models()

    again = workspace.in_process(*command).stdout
    assert "fold=1 of folds=2 is trained already" in again and f"run {parent.info.run_id}" in again
    assert runs_of(workspace)[0].data.metrics == parent.data.metrics
