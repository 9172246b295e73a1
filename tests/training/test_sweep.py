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
from dataclasses import dataclass
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

pytestmark = pytest.mark.slow

TINY = {"backbone": "resnet18", "image_size_px": 32, "batch_size": 8, "epochs": 1, "lr": 1e-3}
# Against a hang only: on one slow core twelve trials have taken nearly six minutes.
_PATIENCE_S = 1800


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace(tmp_path).tracked() as workspace:
        mlflow.search_experiments()
        yield workspace


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
        return self.process.wait(_PATIENCE_S)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """Wait until something is so while it works."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            if found := what():
                return found
            assert self.process.poll() is None, self.output
            time.sleep(0.25)
        raise AssertionError(f"not so within {_PATIENCE_S} s: {self.output}")


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


@dataclass(frozen=True)
class Swept:
    """A sweep of three trials, of which one is complete, one pruned and one astray, as it ended."""

    workspace: Workspace
    data: Path
    output: str
    parent: Run
    child_of: dict[str, Run]
    best_yaml: str


SEARCH = {"lr": [1e-3, 0.1, 1e30, 3e-3]}
PLAN: dict[str, Any] = {
    "sampler": "grid",
    "pruner": "halving",
    "seed": 1,
    "trials": 3,
}  # in this order


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Swept:
    workspace = Workspace(tmp_path_factory.mktemp("swept"))
    write(workspace, tiny_data, {"epochs": 4}, **PLAN, search=SEARCH)
    output = workspace.nuswide("sweep", "tiny.yaml").stdout
    with workspace.tracked():
        parent, children = all_runs()
        child_of = {run.data.tags["sweep.state"]: run for (run,) in children.values()}
        best = artifact(parent, "best.yaml")
    return Swept(workspace, tiny_data, output, parent, child_of, best)


@pytest.fixture
def tracked(swept: Swept) -> Iterator[Swept]:
    """The same, with its tracking store as this process's."""
    with swept.workspace.tracked():
        yield swept


def test_a_sweep_leaves_a_parent_with_a_child_for_each_trial(tracked: Swept) -> None:
    parent, child_of = tracked.parent, tracked.child_of
    assert parent.info.status == "FINISHED" and f"run {parent.info.run_id}" in tracked.output
    assert {state: run.info.status for state, run in child_of.items()} == {
        "complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED",
    }  # fmt: skip
    best = child_of["complete"].data.metrics["val/map"]
    lines = re.findall(r"^trial +\d/3  .*$", tracked.output, flags=re.MULTILINE)
    assert len(lines) == 3
    assert f"val mAP {best:.4f}" in lines[0] and lines[0].endswith("lr=0.001")
    assert re.search(r"pruned at 0\.\d{4}", lines[1])
    assert "failed: the loss became" in lines[2] or "failed: the weights" in lines[2]
    rows = json.loads(artifact(parent, "trials.json"))
    table = [dict(zip(rows["columns"], row, strict=True)) for row in rows["data"]]
    assert [row["state"] for row in table] == ["complete", "pruned", "failed"]
    assert [row["run"] for row in table] == [child_of[row["state"]].info.run_id for row in table]
    assert parent.data.metrics == {"best/val/map": best}
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"history.png", "best.yaml", "trials.json"} <= files


def test_a_sweep_shows_nothing_of_test_and_registers_nothing(tracked: Swept) -> None:
    note = tracked.parent.data.tags["mlflow.note.content"]
    shown = tracked.output + artifact(tracked.parent, "trials.json") + note + tracked.best_yaml
    assert "test/" not in shown and "on test" not in shown
    for text in (tracked.output, tracked.best_yaml):
        assert "  nuswide train --experiment best.yaml\n" in text and "mlflow run" not in text
    assert not [name for name in tracked.parent.data.metrics if "test" in name]
    pruned = tracked.child_of["pruned"].data.metrics
    assert "val/map" in pruned and not [name for name in pruned if name.startswith("test/")]
    assert not mlflow.MlflowClient().search_registered_models()


def test_what_is_done_with_leaves_no_state_on_the_disk(swept: Swept) -> None:
    checkpoints = swept.workspace.folder / "data" / "checkpoints"
    done = {run.info.run_id for run in swept.child_of.values()}
    assert not done & {path.name for path in checkpoints.iterdir()}


def test_the_best_trials_file_trains_to_the_same_figure(tracked: Swept) -> None:
    path = tracked.workspace.folder / "best.yaml"
    path.write_text(tracked.best_yaml)
    config = load_config(path, {})
    assert (config.lr, config.epochs, config.registered_model) == (1e-3, 4, "nuswide-tagger")
    again = tracked.workspace.in_process(
        "train", "--experiment", str(path), "--registered_model", "none"
    )
    best = tracked.child_of["complete"].data.metrics["val/map"]
    assert mlflow.get_run(run_id_of(again)).data.metrics["val/map"] == best


def test_another_search_of_the_same_name_is_refused(swept: Swept) -> None:
    other = {"lr": [*SEARCH["lr"], 1.0]}
    write(swept.workspace, swept.data, {"epochs": 4}, **PLAN, search=other)
    refused = swept.workspace.in_process("sweep", "tiny.yaml", check=False)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "search lr was 0.001, 0.1, 1e+30, 0.003, is 0.001, 0.1" in refused.stderr


def test_a_worker_at_another_tracking_store_is_refused(swept: Swept) -> None:
    write(swept.workspace, swept.data, {"epochs": 4}, **PLAN, search=SEARCH)
    other = {"MLFLOW_TRACKING_URI": f"sqlite:///{swept.workspace.folder / 'other.db'}"}
    storage = f"sqlite:///{swept.workspace.folder / 'sweeps.db'}"
    command = [sys.executable, "-m", "nuswide", "sweep", "tiny.yaml", "--trials", "4"]
    refused = subprocess.run(
        [*command, "--storage", storage], cwd=swept.workspace.folder,
        env=swept.workspace.env | other, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 1 and "set MLFLOW_TRACKING_URI to the tracking" in refused.stderr


def test_mlflow_run_goes_on_with_a_study_that_is_to_have_more_trials(tracked: Swept) -> None:
    workspace = tracked.workspace
    write(workspace, tracked.data, {"epochs": 4}, **PLAN, search=SEARCH)
    storage = f"sqlite:///{workspace.folder / 'sweeps.db'}"
    options = {"trials": "4", "storage": storage, "checkpoints": str(workspace.folder / "state")}
    workspace.mlflow_run("sweep", file=str(workspace.folder / "tiny.yaml"), **options)
    parent, children = all_runs()
    assert parent.info.run_id == tracked.parent.info.run_id and parent.info.status == "FINISHED"
    assert sorted(children) == [1, 2, 3, 4]
    (launcher,) = mlflow.MlflowClient().search_runs(["0"], "tags.`nuswide.job` = 'sweep worker'")
    assert launcher.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert launcher.info.status == "FINISHED"


def test_a_stopped_worker_says_how_to_go_on_and_the_trial_goes_on_exactly(
    workspace: Workspace, tiny_data: Path
) -> None:
    search = {"lr": [1e-3]}
    write(workspace, tiny_data, {"epochs": 20}, sampler="grid", search=search)
    worker = Started(workspace)
    run_id = worker.wait_for(lambda: a_child_with_a_checkpoint(workspace))
    worker.process.send_signal(signal.SIGINT)
    assert worker.end() == 1 and "Traceback" not in worker.output, worker.output
    assert "interrupted; continue with\n  nuswide sweep tiny.yaml\n" in worker.output
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


@pytest.mark.postgres
def test_twelve_trials_by_two_workers_on_postgresql_of_which_one_is_killed(
    workspace: Workspace, tiny_data: Path
) -> None:
    search = {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True}, "head": ["linear", "max_pool"],
        "label_smoothing": [0.0, 0.1],
    }  # fmt: skip
    write(workspace, tiny_data, {"epochs": 2}, sampler="tpe", search=search, trials=12)
    with postgres.server() as server:
        driver = server.url.replace("postgresql:", "postgresql+psycopg:")
        workers = [Started(workspace, "--storage", server.url) for _ in range(2)]
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


@pytest.mark.postgres
def test_a_storage_that_goes_away_ends_a_worker_in_a_line_and_the_same_command_goes_on(
    workspace: Workspace, tiny_data: Path
) -> None:
    write(workspace, tiny_data, {"epochs": 12}, sampler="grid", search={"lr": [1e-3]})
    with postgres.server() as server:
        worker = Started(workspace, "--storage", server.url)
        under_way = worker.wait_for(lambda: a_child_with_a_checkpoint(workspace))
        server.stop()
        assert worker.end() == 1 and "Traceback" not in worker.output, worker.output
        assert "the storage does not answer" in worker.output
        again = f"continue with\n  nuswide sweep tiny.yaml --storage {server.url}\n"
        assert again in worker.output
        parent, children = all_runs()
        runs = [parent, *(run for runs in children.values() for run in runs)]
        assert "RUNNING" not in {run.info.status for run in runs}
        server.start()
        worker = Started(workspace, "--storage", server.url)
        assert worker.end() == 0, worker.output
    parent, children = all_runs()
    ((child,),) = children.values()
    assert {parent.info.status, child.info.status} == {"FINISHED"}
    assert child.info.run_id == under_way and child.data.tags["sweep.state"] == "complete"
