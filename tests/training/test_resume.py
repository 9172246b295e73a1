"""Runs that are stopped, killed and resumed; what is stopped or killed is a process of its own."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import Workspace, run_id_of
from safetensors.torch import load_file

from nuswide.config import Config
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.training import run_folder

pytestmark = pytest.mark.slow

TIMED = {"train/images_per_s", "train/seconds", "run/seconds"}
OPTIONS = {
    "backbone": "resnet18", "image_size_px": "32", "batch_size": "8", "lr": "1e-3",
    "ema_epochs": "1", "registered_model": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with Workspace(tmp_path_factory.mktemp("resume")).tracked() as workspace:
        yield workspace


def command(data: Path, **changes: str) -> list[str]:
    options = OPTIONS | {"data": str(data)} | changes
    return ["train", *(x for k, v in options.items() for x in (f"--{k}", v))]


def start(workspace: Workspace, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nuswide", *arguments],
        cwd=workspace.folder,
        env=workspace.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str], steps: int) -> str:
    """Wait until a run has a state of so many steps; gives its id."""
    for _ in range(1200):
        for last in folder.glob("*/last.pt"):
            if torch.load(last, weights_only=True)["progress"]["steps"] >= steps:
                return last.parent.name
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError("no checkpoint within 2 minutes")


def outcome(run_id: str) -> tuple[dict[str, torch.Tensor], dict[str, list[tuple[int, float]]]]:
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    path = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="weights/weights.safetensors"
    )
    histories = {
        key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)]
        for key in set(run.data.metrics) - TIMED
    }
    return load_file(path), histories


def assert_equal_outcomes(one: str, other: str) -> None:
    (weights, histories), (weights_2, histories_2) = outcome(one), outcome(other)
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert histories.keys() == histories_2.keys()
    for key, points in histories.items():
        assert len({step for step, _ in points}) == len(points), key
        assert sorted(points) == sorted(histories_2[key]), key


def test_a_killed_run_ends_as_one_that_was_not(workspace: Workspace, tiny_data: Path) -> None:
    often = {"epochs": "3", "checkpoint_minutes": "0.001"}
    often |= {"sampling": "class_aware", "auto_augment": "randaugment"}
    whole = run_id_of(workspace.in_process(*command(tiny_data, **often, checkpoints="whole")))
    folder = workspace.folder / "killed"
    for steps in (2, 6):
        arguments = command(tiny_data, **often, checkpoints=str(folder), resume="auto")
        process = start(workspace, *arguments)
        run_id = wait_for_checkpoint(folder, process, steps)
        process.kill()
        process.communicate()
        assert mlflow.get_run(run_id).info.status == "RUNNING"
    arguments = command(tiny_data, **often, checkpoints=str(folder), resume="auto")
    done = workspace.in_process(*arguments)
    assert f"resuming run {run_id}" in done.stdout
    assert_equal_outcomes(whole, run_id)


def test_an_interrupted_run_says_how_to_go_on_and_does(
    workspace: Workspace, tiny_data: Path
) -> None:
    folder = workspace.folder / "stopped"
    long = command(tiny_data, epochs="300", checkpoints="stopped", checkpoint_minutes="0.001")
    process = start(workspace, *long)
    run_id = wait_for_checkpoint(folder, process, 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in output, output
    assert mlflow.get_run(run_id).info.status == "KILLED"
    (printed,) = re.findall(r"^  nuswide (.*)$", output, flags=re.MULTILINE)
    assert shlex.split(printed) == [*long, "--resume", run_id]
    steps = torch.load(folder / run_id / "last.pt", weights_only=True)["progress"]["steps"]
    recorded = mlflow.MlflowClient().get_metric_history(run_id, "train/loss")
    assert sorted(m.step for m in recorded) == list(range(steps))
    # On another machine: the state comes from the run's artifacts, and the spool is not there.
    folder.rename(workspace.folder / "elsewhere")
    process = start(workspace, *shlex.split(printed))
    wait_for_checkpoint(folder, process, steps + 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    steps = torch.load(folder / run_id / "last.pt", weights_only=True)["progress"]["steps"]
    recorded = mlflow.MlflowClient().get_metric_history(run_id, "train/loss")
    assert sorted(m.step for m in recorded) == list(range(steps))


@contextmanager
def stopped_before_training() -> Iterator[None]:
    """Stop a command once it has begun its run or joined one, which is what its test is about."""

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nuswide.training.pipeline.fit", stop)
        yield


def latest_run() -> str:
    return str(mlflow.search_runs(search_all_experiments=True, output_format="list")[0].info.run_id)


def test_a_run_that_is_stopped_while_it_records_its_end_registers_one_version(
    workspace: Workspace, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: str) -> str:
        raise KeyboardInterrupt

    options = {"epochs": "1", "registered_model": "once", "checkpoints": "end"}
    arguments = command(tiny_data, **options)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("nuswide.evaluation.promote.try_for_champion", stop)
            assert workspace.in_process(*arguments, check=False).returncode == 1
        (folder,) = (workspace.folder / "end").iterdir()
        arguments = command(tiny_data, **options, resume=folder.name)
    done = workspace.in_process(*arguments)
    assert "It is registered as once version 1." in done.stdout
    versions = mlflow.MlflowClient().search_model_versions("name='once'")
    assert [(str(version.version), version.run_id) for version in versions] == [("1", folder.name)]


def test_a_finished_run_can_be_trained_further_but_not_otherwise(
    workspace: Workspace, tiny_data: Path
) -> None:
    run_id = run_id_of(workspace.in_process(*command(tiny_data, epochs="1")))
    longer = command(tiny_data, epochs="2", resume=run_id)
    done = workspace.in_process(*longer, "--lr", "1e-2", check=False)
    assert done.returncode == 2 and "lr was 0.001, is 0.01" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    workspace.in_process(*longer)
    whole = run_id_of(workspace.in_process(*command(tiny_data, epochs="2")))
    weights, histories = outcome(run_id)
    expected, histories_2 = outcome(whole)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert sorted(histories["train/loss"]) == sorted(histories_2["train/loss"])


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"epochs": 9}, []),
        ({"epochs": 2}, ["epochs"]),
        ({"epochs": 9, "schedule": "cosine"}, ["epochs"]),
        ({"epochs": 9, "start_size_px": 32}, ["epochs"]),
    ],
)
def test_more_epochs_go_on_with_a_run_unless_what_is_past_would_have_been_otherwise(
    changes: dict[str, Any], differs: list[str]
) -> None:
    config = replace(Config(epochs=3), **{k: v for k, v in changes.items() if k != "epochs"})
    names, targets = ("a", "b"), np.zeros((2, 1), np.uint8)
    manifest = Manifest(Path(), names, ("cat",), targets, np.array(["train", "test"]))
    data = Dataset(manifest, np.zeros((2, 3, 1, 1), np.uint8), np.arange(2))
    before, now = (run_folder.describe(c, data) for c in (config, replace(config, **changes)))
    assert [said.split()[0] for said in run_folder._differences(before, now)] == differs


def test_mlflow_run_goes_on_with_a_run_and_its_own_says_so(
    workspace: Workspace, tiny_data: Path
) -> None:
    run_id = run_id_of(workspace.in_process(*command(tiny_data, epochs="1", warmup_epochs="0.5")))
    params = OPTIONS | {"data": str(tiny_data), "epochs": "2", "warmup_epochs": "0.5"}
    params |= {"experiment": str(workspace.folder / "empty.yaml"), "resume": run_id}
    (workspace.folder / "empty.yaml").write_text("")
    checkpoints = str(workspace.folder / "data" / "checkpoints")
    done = workspace.mlflow_run("main", checkpoints=checkpoints, **params)
    assert run_id_of(done) == run_id
    launcher = mlflow.search_runs(experiment_names=["Default"], output_format="list")[0]
    assert launcher.data.tags["nuswide.job"] == "resume"
    assert launcher.data.tags["mlflow.parentRunId"] == run_id
    assert launcher.info.status == "FINISHED"


def test_a_run_that_ended_is_not_gone_on_with_by_itself(
    workspace: Workspace, tiny_data: Path
) -> None:
    """Killed after its run was ended and before that was noted, a process has done all its work."""
    arguments = command(tiny_data, epochs="1", lr="3e-3", checkpoints="ended", resume="auto")
    run_id = run_id_of(workspace.in_process(*arguments))
    about = workspace.folder / "ended" / run_id / "about.json"
    assert json.loads(about.read_text())["recorded"]
    about.write_text(about.read_text().replace('"recorded": true', '"recorded": false'))
    with stopped_before_training():
        done = workspace.in_process(*arguments, check=False)
    assert "interrupted; " in done.stdout and "resuming" not in done.stdout
    assert latest_run() != run_id


def test_an_unfinished_run_of_another_store_is_left_alone(
    workspace: Workspace, tiny_data: Path
) -> None:
    arguments = command(tiny_data, epochs="1", lr="4e-3", checkpoints="shared")
    run_id = run_id_of(workspace.in_process(*arguments))
    about = workspace.folder / "shared" / run_id / "about.json"
    foreign = workspace.folder / "shared" / ("f" * 32)
    foreign.mkdir()
    text = about.read_text().replace('"recorded": true', '"recorded": false')
    (foreign / "about.json").write_text(text)
    for resume in ("none", "auto"):
        with stopped_before_training():
            done = workspace.in_process(*arguments, "--resume", resume, check=False)
        assert "interrupted; " in done.stdout and "resuming" not in done.stdout
        assert latest_run() not in (run_id, foreign.name)


def test_a_run_that_is_nowhere_is_an_error(workspace: Workspace, tiny_data: Path) -> None:
    done = workspace.in_process(*command(tiny_data, resume="0" * 32), check=False)
    assert done.returncode == 1 and "no checkpoint of run 000" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_trained_by_one_process_at_a_time(workspace: Workspace, tiny_data: Path) -> None:
    folder = workspace.folder / "busy"
    long = command(tiny_data, epochs="300", checkpoints="busy", checkpoint_minutes="0.001")
    process = start(workspace, *long)
    run_id = wait_for_checkpoint(folder, process, 1)
    done = workspace.in_process(*long, "--resume", run_id, check=False)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert done.returncode == 1 and "another process is training run" in done.stderr, done.stderr
