"""Sweeps by real workers: their record, and workers that are stopped, killed and silent."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import optuna
import postgres
import pytest
import yaml
from conftest import Workspace, run_id_of
from mlflow.entities import Run
from optuna.trial import TrialState

from nuswide.config import load_config

TINY = {"backbone": "resnet18", "image_size_px": 32, "batch_size": 8, "epochs": 1, "lr": 1e-3}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace(tmp_path)
    mlflow.set_tracking_uri(workspace.env["MLFLOW_TRACKING_URI"])
    mlflow.search_experiments()
    yield workspace
    mlflow.set_tracking_uri(None)


def write(workspace: Workspace, data: Path, experiment: dict[str, Any], **content: Any) -> None:
    content["experiment"] = {**TINY, "data": str(data), **experiment}
    (workspace.folder / "tiny.yaml").write_text(yaml.safe_dump({"heartbeat_s": 1, **content}))


class Started:
    """A worker in the background; its output in a file."""

    def __init__(self, workspace: Workspace, *options: str) -> None:
        self._log = (workspace.folder / f"worker-{time.monotonic_ns()}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nuswide", "sweep", "tiny.yaml", *options],
            cwd=workspace.folder, env={**workspace.env, "OMP_NUM_THREADS": "1"},
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    @property
    def output(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def end(self) -> int:
        """Wait for its end; gives its exit code."""
        return self.process.wait(300)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """Wait until something is so while it works."""
        for _ in range(1200):
            if found := what():
                return found
            assert self.process.poll() is None, self.output
            time.sleep(0.1)
        raise AssertionError(f"not so within 2 minutes: {self.output}")


def all_runs() -> tuple[Run, dict[int, list[Run]]]:
    """The one parent, and the children by their trial."""
    runs = mlflow.MlflowClient().search_runs(["0"], max_results=1000)
    (parent,) = [run for run in runs if run.data.tags.get("nuswide.job") == "sweep"]
    children: dict[int, list[Run]] = {}
    for run in runs:
        if "sweep.trial" in run.data.tags:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            children.setdefault(int(run.data.tags["sweep.trial"]), []).append(run)
    return parent, children


def a_child_with_a_checkpoint(workspace: Workspace) -> str | None:
    """The ID of a run that is under way."""
    found = (workspace.folder / "data" / "checkpoints").glob("*/last.pt")
    return next((path.parent.name for path in found), None)


def artifact(run: Run, name: str) -> str:
    return Path(
        mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name)
    ).read_text()


def study_of(url: str) -> optuna.Study:
    return optuna.load_study(study_name="tiny", storage=url)


def stop_between_writes(process: subprocess.Popen[bytes], files: list[Path]) -> None:
    """Stop a process while it has no lock on these databases, which nobody else could take."""
    for _ in range(100):
        process.send_signal(signal.SIGSTOP)
        try:
            for file in files:
                with closing(sqlite3.connect(file, timeout=0)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.05)
        else:
            return
    raise AssertionError("it writes all the time")


def test_a_sweep_leaves_a_parent_with_its_trials_and_the_best_as_an_experiment(
    workspace: Workspace, tiny_data: Path
) -> None:
    """One of its trials diverges, which is a trial's end and not the sweep's."""
    search = {"lr": [1e-3, 1e30], "loss": ["bce", "asl"]}
    write(workspace, tiny_data, {}, sampler="grid", search=search, trials=3, seed=2)
    done = workspace.nuswide("sweep", "tiny.yaml")
    parent, children = all_runs()
    assert parent.info.status == "FINISHED" and run_id_of(done) == parent.info.run_id
    assert sorted(children) == [1, 2, 3] and all(len(runs) == 1 for runs in children.values())
    states = {trial: runs[0].data.tags["sweep.state"] for trial, runs in children.items()}
    assert sorted(states.values()) in (
        ["complete", "failed", "failed"],
        ["complete"] * 2 + ["failed"],
    )
    lines = re.findall(r"^trial +\d/3 .*$", done.stdout, flags=re.MULTILINE)
    assert len(lines) == 3 and sum("failed: the " in line for line in lines) == list(
        states.values()
    ).count("failed")
    for (run,) in children.values():
        is_complete = run.data.tags["sweep.state"] == "complete"
        assert run.info.status == ("FINISHED" if is_complete else "FAILED")
    assert not mlflow.MlflowClient().search_registered_models()
    # Nothing of test is in what the sweep shows.
    table = artifact(parent, "trials.json")
    shown = done.stdout + table + parent.data.tags["mlflow.note.content"]
    assert (
        "test/" not in shown
        and "on test" not in shown
        and set(parent.data.metrics) == {"best/val/map"}
    )
    complete = [run for (run,) in children.values() if run.info.status == "FINISHED"]
    best = max(complete, key=lambda run: run.data.metrics["val/map"])
    rows = json.loads(table)
    assert dict(zip(rows["columns"], rows["data"][0], strict=True))["run"] == best.info.run_id
    assert parent.data.metrics["best/val/map"] == best.data.metrics["val/map"]
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"history.png", "best.yaml", "trials.json"} <= files
    # The best trial's file is that trial.
    path = workspace.folder / "best.yaml"
    path.write_text(artifact(parent, "best.yaml"))
    config = load_config(path, {})
    assert config.registered_model == "nuswide-tagger" and config.lr == 1e-3
    again = workspace.nuswide("train", "--experiment", str(path), "--registered_model", "none")
    metrics = mlflow.get_run(run_id_of(again)).data.metrics
    assert metrics["val/map"] == best.data.metrics["val/map"]
    assert not list((workspace.folder / "data" / "checkpoints").glob("*/last.pt"))[1:]


def test_a_study_is_gone_on_with_by_name_and_by_more_trials_alone(
    workspace: Workspace, tiny_data: Path
) -> None:
    search = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    write(workspace, tiny_data, {}, sampler="random", search=search, trials=1)
    workspace.nuswide("sweep", "tiny.yaml")
    search["lr"]["high"] = 1.0
    write(workspace, tiny_data, {}, sampler="random", search=search, trials=1)
    refused = workspace.nuswide("sweep", "tiny.yaml", check=False)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "search lr was 0.0001 to 0.01, log, is 0.0001 to 1, log" in refused.stderr
    search["lr"]["high"] = 1e-2
    write(workspace, tiny_data, {}, sampler="random", search=search, trials=1)
    file = str(workspace.folder / "tiny.yaml")
    storage = f"sqlite:///{workspace.folder / 'sweeps.db'}"
    workspace.mlflow_run("sweep", file=file, trials="2", storage=storage)
    parent, children = all_runs()
    assert parent.info.status == "FINISHED" and sorted(children) == [1, 2]
    (launcher,) = mlflow.MlflowClient().search_runs(["0"], "tags.`nuswide.job` = 'sweep worker'")
    assert launcher.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert launcher.info.status == "FINISHED"
    once_more = workspace.nuswide("sweep", "tiny.yaml", "--trials", "2")
    assert "2 are done" in once_more.stdout and all_runs()[1].keys() == {1, 2}
    # A worker at another tracking store would scatter the runs.
    env = {**workspace.env, "MLFLOW_TRACKING_URI": f"sqlite:///{workspace.folder / 'other.db'}"}
    command = [sys.executable, "-m", "nuswide", "sweep", "tiny.yaml", "--trials", "3"]
    away = subprocess.run(
        [*command, "--storage", storage], cwd=workspace.folder, env=env, capture_output=True,
        text=True,
    )  # fmt: skip
    assert away.returncode == 1 and "set MLFLOW_TRACKING_URI to the tracking" in away.stderr


def test_trials_that_fall_behind_are_pruned_and_end_as_killed(
    workspace: Workspace, tiny_data: Path
) -> None:
    search = {"lr": [1e-3, 1e-9, 2e-9]}
    write(workspace, tiny_data, {"epochs": 3}, sampler="grid", pruner="halving", search=search)
    done = workspace.nuswide("sweep", "tiny.yaml")
    parent, children = all_runs()
    pruned = [r for (r,) in children.values() if r.data.tags["sweep.state"] == "pruned"]
    assert pruned and all(run.info.status == "KILLED" for run in pruned)
    assert parent.info.status == "FINISHED"
    for run in pruned:
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/map")
        assert 1 <= len(history) < 3
        assert not any(name.startswith("test/") for name in run.data.metrics)
    assert len(re.findall(r"pruned at 0\.\d{4}", done.stdout)) == len(pruned)
    # Neither its state nor that of complete trials takes up the disk.
    assert not list((workspace.folder / "data" / "checkpoints").glob("*/last.pt"))


def test_a_stopped_worker_says_how_to_go_on_and_the_trial_goes_on_exactly(
    workspace: Workspace, tiny_data: Path
) -> None:
    search = {"lr": [1e-3]}
    write(workspace, tiny_data, {"epochs": 20}, sampler="grid", search=search)
    worker = Started(workspace)
    run_id = worker.wait_for(lambda: a_child_with_a_checkpoint(workspace))
    worker.process.send_signal(signal.SIGINT)
    assert worker.end() == 1 and "Traceback" not in worker.output, worker.output
    assert "interrupted; go on with\n  python -m nuswide sweep tiny.yaml\n" in worker.output
    parent, children = all_runs()
    assert parent.info.status == "KILLED"
    assert [run.info.status for run in children[1]] == ["KILLED"]
    workspace.nuswide("sweep", "tiny.yaml")
    parent, children = all_runs()
    ((child,),) = children.values()
    assert child.info.run_id == run_id and child.data.tags["sweep.state"] == "complete"
    assert {parent.info.status, child.info.status} == {"FINISHED"}
    # No step twice, none missing: 20 epochs, and 20 evaluations and the chosen one's.
    client = mlflow.MlflowClient()
    steps = sorted(m.step for m in client.get_metric_history(run_id, "train/loss"))
    assert steps == list(range(steps[-1] + 1)) and len(steps) % 20 == 0
    assert len(client.get_metric_history(run_id, "val/map")) == 21
    trials = study_of(f"sqlite:///{workspace.folder / 'sweeps.db'}").trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert sorted(trials[1].intermediate_values) == list(range(20))


def test_a_worker_that_was_silent_gives_its_trial_up(workspace: Workspace, tiny_data: Path) -> None:
    """It is neither dead nor alone: another has its trial by the time that it goes on."""
    write(workspace, tiny_data, {"epochs": 12}, sampler="grid", search={"lr": [1e-3]})
    silent = Started(workspace)
    first = silent.wait_for(lambda: a_child_with_a_checkpoint(workspace))
    stop_between_writes(silent.process, [workspace.folder / n for n in ("mlflow.db", "sweeps.db")])
    other = Started(workspace)
    try:
        assert other.end() == 0, other.output
    finally:
        silent.process.send_signal(signal.SIGCONT)
    assert silent.end() == 0, silent.output
    assert "trial 1 is another worker's now" in silent.output
    parent, children = all_runs()
    states = {run.info.run_id: run.data.tags["sweep.state"] for run in children[1]}
    assert states.pop(first) == "given up" and list(states.values()) == ["complete"]
    assert parent.info.status == "FINISHED"
    assert "RUNNING" not in {run.info.status for run in children[1]}


def test_twelve_trials_by_two_workers_on_postgresql_of_which_one_is_killed(
    workspace: Workspace, tiny_data: Path
) -> None:
    if not postgres.INITDB:
        pytest.skip("PostgreSQL's server is not installed")
    search = {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True}, "head": ["linear", "max_pool"],
        "label_smoothing": [0.0, 0.1],
    }  # fmt: skip
    write(workspace, tiny_data, {"epochs": 2}, sampler="tpe", search=search, trials=12)
    with postgres.server() as url:
        driver = url.replace("postgresql:", "postgresql+psycopg:")
        workers = [Started(workspace, "--storage", url) for _ in range(2)]
        doomed, survivor = workers

        def doomed_trains() -> str | None:
            """Its run, once it is in the middle of a trial and something has been completed."""
            mark = f":{doomed.process.pid}"
            trials = study.trials
            own = [
                t for t in trials
                if t.state == TrialState.RUNNING and t.user_attrs.get("worker", "").endswith(mark)
            ]  # fmt: skip
            is_any_complete = any(t.state == TrialState.COMPLETE for t in trials)
            return str(own[0].user_attrs["run"]) if own and is_any_complete else None

        doomed.wait_for(lambda: "sweep tiny: 12 trials" in doomed.output)
        study = study_of(driver)
        lost_run = doomed.wait_for(doomed_trains)
        os.kill(doomed.process.pid, signal.SIGKILL)
        doomed.end()
        assert survivor.end() == 0, survivor.output
        trials = study.trials
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == 12
    assert sorted(trial.user_attrs["place"] for trial in complete) == list(range(12))
    assert len({json.dumps(trial.params, sort_keys=True) for trial in complete}) == 12
    assert len({trial.user_attrs["run"] for trial in complete}) == 12
    (lost,) = [t for t in trials if t.state == TrialState.FAIL and t.user_attrs["run"] == lost_run]
    (retried,) = [t for t in complete if t.user_attrs["place"] == lost.user_attrs["place"]]
    assert retried.params == lost.params and retried.user_attrs["deaths"] == 1
    parent, children = all_runs()
    assert parent.info.status == "FINISHED" and sorted(children) == list(range(1, 13))
    finished = [run for runs in children.values() for run in runs if run.info.status == "FINISHED"]
    assert len(finished) == 12
    assert {run.info.status for runs in children.values() for run in runs} <= {"FINISHED", "KILLED"}
    assert {run.info.run_id: run.data.metrics["val/map"] for run in finished} == {
        trial.user_attrs["run"]: trial.value for trial in complete
    }
    # Each worker has said of each of its trials what came of it, and of none twice.
    said = re.findall(r"^trial +(\d+)/12 ", doomed.output + survivor.output, flags=re.MULTILINE)
    assert len(said) == len(set(said)) >= 11
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"history.png", "importance.png", "parallel_coordinates.png", "best.yaml"} <= files
    assert "sweeper@" in parent.data.params["storage"]
