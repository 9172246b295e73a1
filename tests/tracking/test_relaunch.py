"""The command that an interrupted process prints as the way on."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import TINY, Workspace

from nuswide.tracking.relaunch import Launcher, find_launcher, same_command, train_command, way_on

PROJECT = {"mlflow.project.entryPoint": "main", "mlflow.project.env": "uv"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with Workspace(tmp_path_factory.mktemp("relaunch")).tracked() as workspace:
        yield workspace


def begin(
    monkeypatch: pytest.MonkeyPatch, tags: dict[str, str], experiment: str = "0", **params: str
) -> str:
    """Begin a run as `mlflow run` does, which records params quoted for a shell."""
    client = mlflow.MlflowClient()
    run_id = str(client.create_run(experiment, tags=tags).info.run_id)
    for name, value in params.items():
        client.log_param(run_id, name, shlex.quote(value))
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("train --lr 1e-3", "resume with\n  nuswide train --lr 1e-3 --resume ID"),
        ("train --resume auto --lr 1e-3", "resume with\n  nuswide train --lr 1e-3 --resume ID"),
        ("reproduce RUN --data DIR", "repeat with\n  nuswide reproduce RUN --data DIR"),
        ("upload RUN", "repeat with\n  nuswide upload RUN"),
        ("sweep FILE", "repeat with\n  nuswide sweep FILE"),
    ],
)
def test_only_train_is_told_to_resume_a_run(
    given: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["nuswide", *given.split()])
    assert way_on("ID", None) == expected


def test_under_mlflow_run_a_training_is_resumed_by_mlflow_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, PROJECT, data="my data", lr="1e-3", resume="auto")
    monkeypatch.setattr(sys, "argv", ["nuswide", "train", "--data", "my data", "--lr", "1e-3"])
    words, command = way_on("ID", find_launcher()).split("\n")
    assert words == "resume with"
    assert shlex.split(command) == [
        "mlflow", "run", ".", "--env-manager", "uv",
        "-P", "data=my data", "-P", "lr=1e-3", "-P", "resume=ID",
    ]  # fmt: skip


@pytest.mark.parametrize(("entry", "param"), [("sweep", "file"), ("reproduce", "run")])
def test_another_entry_point_is_started_again_as_it_was(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, entry: str, param: str
) -> None:
    begin(monkeypatch, {"mlflow.project.entryPoint": entry}, **{param: "X"})
    monkeypatch.setattr(sys, "argv", ["nuswide", entry, "X"])
    expected = f"mlflow run . -e {entry} --env-manager local -P {param}=X"
    assert same_command(find_launcher()) == expected
    assert way_on("ID", find_launcher()) == f"repeat with\n  {expected}"


def test_a_file_is_trained_in_the_way_that_the_process_was_started(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train_command(None, "best.yaml") == "nuswide train --experiment best.yaml"
    begin(monkeypatch, PROJECT | {"mlflow.project.entryPoint": "sweep"}, file="X", lr="1e-3")
    command = train_command(find_launcher(), "best.yaml")
    assert command == "mlflow run . --env-manager uv -P experiment=best.yaml"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("file://{folder}#a b", ["{folder}/a b"]),
        ("file://{folder}", ["{folder}"]),
        ("{folder}", ["{folder}"]),
        ("https://host/x.git#sub", ["https://host/x.git#sub", "-v", "c0ffee"]),
    ],
)
def test_the_command_works_in_any_folder_and_keeps_the_experiment(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, source: str, expected: list[str]
) -> None:
    folder = workspace.folder.resolve()
    (folder / "a b").mkdir(exist_ok=True)
    name = f"my experiment {source}"
    experiment = mlflow.MlflowClient().create_experiment(name)
    tags = {
        "mlflow.source.name": source.format(folder=folder),
        "mlflow.source.git.commit": "c0ffee",
    }
    begin(monkeypatch, PROJECT | tags, experiment=experiment, lr="1")
    assert shlex.split(same_command(find_launcher())) == [
        "mlflow", "run", *(word.format(folder=folder) for word in expected),
        "--experiment-name", name, "--env-manager", "uv", "-P", "lr=1",
    ]  # fmt: skip


def test_a_run_id_that_the_user_has_set_is_no_mlflow_run(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(monkeypatch, {})
    assert find_launcher() is None
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert find_launcher() is None
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert find_launcher() is None


@pytest.mark.slow
def test_the_first_stop_under_mlflow_run_prints_mlflow_run(
    workspace: Workspace, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow removes MLFLOW_RUN_ID when the run is joined, long before the stop."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nuswide.training.pipeline.fit", stop)
    options = TINY | {"data": str(tiny_data), "registered_model": "none"}
    run_id = begin(monkeypatch, PROJECT, **options)
    given = ["train", *(x for k, v in options.items() for x in (f"--{k}", v))]
    monkeypatch.setattr(sys, "argv", ["nuswide", *given])
    done = workspace.in_process(*given, check=False)
    assert done.returncode == 1
    expected = Launcher("main", "uv", options).command(resume=run_id)
    assert f"interrupted; resume with\n  {expected}\n" in done.stdout
