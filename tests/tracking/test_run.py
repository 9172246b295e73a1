import math
from collections.abc import Iterator
from pathlib import Path

import click
import mlflow
import numpy as np
import pytest
from conftest import Workspace

from nuswide.data.manifest import Manifest
from nuswide.tracking import run as run_module
from nuswide.tracking.environment import patch_digest
from nuswide.tracking.outbox import Outbox
from nuswide.tracking.run import TrackingUnavailable, start_run


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with Workspace(tmp_path_factory.mktemp("tracking")).tracked("here"):
        yield


def status(run_id: str) -> str:
    return str(mlflow.get_run(run_id).info.status)


def test_a_run_ends_as_what_happened() -> None:
    ends = {None: "FINISHED", ValueError: "FAILED", KeyboardInterrupt: "KILLED"}
    for error, expected in ends.items():
        try:
            with start_run("train", "x") as run:
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt):
            pass
        assert status(run.id) == expected


def test_a_run_whose_folder_cannot_be_written_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(click.ClickException, match="cannot write into .*; give another checkpoints"),
        start_run("train", "x", outbox=tmp_path / "file"),
    ):
        pass
    assert mlflow.active_run() is None
    assert mlflow.search_runs(order_by=["start_time DESC"])["status"][0] == "FAILED"


def test_an_experiment_that_another_run_creates_meanwhile_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "meanwhile")
    find, asked = mlflow.MlflowClient.get_experiment_by_name, []

    def find_too_early(self: mlflow.MlflowClient, name: str) -> object:
        asked.append(name)
        found = find(self, name)
        if len(asked) == 1:
            self.create_experiment(name)
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", find_too_early)
    with start_run("train", "x") as run:
        pass
    experiment = mlflow.get_experiment(run.experiment_id)
    assert experiment.name == "meanwhile" and asked[0] == "meanwhile"


def test_buffered_metrics_survive_an_error() -> None:
    with pytest.raises(ValueError, match="boom"), start_run("train", "x") as run:
        run.log_metrics({"train/loss": 0.5}, step=7)
        raise ValueError("boom")
    (metric,) = mlflow.MlflowClient().get_metric_history(run.id, "train/loss")
    assert (metric.step, metric.value) == (7, 0.5)


def test_more_metrics_than_a_batch_all_arrive_once() -> None:
    with start_run("train", "x") as run:
        for step in range(2500):
            run.log_metrics({"a": step / 2}, step=step)
    history = mlflow.MlflowClient().get_metric_history(run.id, "a")
    assert [(m.step, m.value) for m in history] == [(s, s / 2) for s in range(2500)]


def test_figures_that_are_not_finite_are_left_out() -> None:
    with start_run("train", "x") as run:
        run.log_metrics({"a": math.nan, "b": math.inf, "c": 1.0}, step=0)
    assert mlflow.get_run(run.id).data.metrics == {"c": 1.0}


@pytest.mark.parametrize(
    ("patch", "is_kept"), [("", False), ("+ a", True), ("+" * 10**6 + "a", False)]
)
def test_uncommitted_changes_are_kept_as_a_patch_unless_they_are_huge(
    patch: str, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "uncommitted_patch", lambda: patch)
    with start_run("train", "x") as run:
        pass
    found = mlflow.MlflowClient().list_artifacts(run.id, "git")
    assert [file.path for file in found] == [f"git/{patch_digest(patch)}.patch"] * is_kept


@pytest.mark.parametrize("place", [None, "data/checkpoints", "my checkpoints"])
def test_what_does_not_arrive_can_be_sent_later_only_where_it_was_kept(
    place: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Outbox, "close", lambda self, timeout_s: False)
    with pytest.raises(TrackingUnavailable) as caught:
        with start_run("train", "x", outbox=place and Path(place)) as run:
            pass
    later = f"nuswide upload {run.id}"
    way_out = {
        None: "some of the metrics are lost; repeat the command",
        "data/checkpoints": f"{later} records the rest",
        "my checkpoints": f"{later} --checkpoints 'my checkpoints' records the rest",
    }[place]
    assert caught.value.message == f"the tracking server did not take all metrics; {way_out}"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> str:
    """A run as `mlflow run --run-name "my best" -P lr=1e-4` begins it; its id."""
    experiment_id = mlflow.get_experiment_by_name("here").experiment_id
    run_id = mlflow.MlflowClient().create_run(experiment_id, run_name="my best").info.run_id
    mlflow.MlflowClient().log_param(run_id, "lr", "1e-4")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return str(run_id)


def test_a_param_that_mlflow_run_typed_stays_as_it_is(begun: str) -> None:
    with start_run("train", "x") as run:
        run.log_params({"lr": 0.0001, "epochs": 3})
    assert run.id == begun
    assert mlflow.get_run(run.id).data.params == {"lr": "1e-4", "epochs": "3"}


def test_a_made_up_name_is_replaced() -> None:
    with start_run("train", "sample lr=1e-4") as run:
        pass
    assert mlflow.get_run(run.id).info.run_name == "sample lr=1e-4"


def test_a_name_that_the_user_gave_stays(begun: str) -> None:
    with start_run("train", "sample lr=1e-4"):
        pass
    assert mlflow.get_run(begun).info.run_name == "my best"


def test_a_split_is_recorded_under_its_folder_and_digest(tmp_path: Path) -> None:
    root = tmp_path / "holiday" / "images"
    samples = Manifest(root, ("a.jpg",), ("sky",), np.ones((1, 1), np.uint8), np.array(["test"]))
    with start_run("train", "x") as run:
        run.log_dataset(samples, "test")
        run.log_result({"test/map": 0.5, "test/x": math.nan}, split="test", step=3, model_id=None)
    recorded = mlflow.get_run(run.id)
    (given,) = recorded.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("holiday-test", samples.digest)
    assert recorded.data.metrics == {"test/map": 0.5}


def test_the_address_leads_to_the_runs_page() -> None:
    with start_run("train", "x") as run:
        pass
    assert run.address.startswith("`mlflow ui` shows it at http://127.0.0.1:5000/#/experiments/")
    assert f"/runs/{run.id}?" in run.address
