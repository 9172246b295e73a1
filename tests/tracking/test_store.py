"""The first access to a tracking store, by one process and by several at once."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
from conftest import ROOT

from nuswide.tracking import store
from nuswide.tracking.errors import mlflow_errors_in_one_line

START = """
import sys, time
from pathlib import Path
from nuswide.tracking.store import open_store
folder, number = Path(sys.argv[1]), int(sys.argv[2])
(folder / f"{number}.ready").touch()
while len(list(folder.glob("*.ready"))) < 3:
    time.sleep(0.001)
open_store()
import mlflow
mlflow.MlflowClient().create_run("0")
"""


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_processes_that_start_at_once_share_a_fresh_store(uri: str, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(tmp_path), str(number)],
            env={"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri, "PATH": ""},
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert len(mlflow.MlflowClient().search_runs(["0"])) == 3


class Client:
    """One whose first calls fail, as while another program creates the tables."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> "Client":
        return self

    def search_experiments(self, **options: Any) -> list[Any]:
        if self.errors:
            raise self.errors.pop(0)
        return []


def test_a_store_whose_tables_another_program_creates_is_waited_for(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PAUSE_S", 0.001)
    client = Client(RuntimeError("table experiments already exists"), RuntimeError("no version"))
    monkeypatch.setattr(mlflow, "MlflowClient", client)
    store.open_store()
    assert client.errors == []


def test_a_store_that_cannot_be_opened_is_an_error_in_one_line(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(mlflow, "MlflowClient", Client(RuntimeError("no such host\nat all")))
    with pytest.raises(click.ClickException) as caught:
        store.open_store()
    expected = "cannot open the tracking store (no such host); check MLFLOW_TRACKING_URI"
    assert caught.value.message == expected


def test_a_file_that_is_no_database_is_an_error_in_one_line_to_every_command(
    uri: str, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but a text that is long enough to be told")
    with pytest.raises(click.ClickException) as caught, mlflow_errors_in_one_line():
        mlflow.MlflowClient().search_experiments()
    expected = "cannot open the tracking store ((sqlite3.DatabaseError) file is not a database); "
    assert caught.value.message == f"{expected}check MLFLOW_TRACKING_URI"


def test_a_servers_store_is_left_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    monkeypatch.setattr(mlflow, "MlflowClient", None)
    try:
        store.open_store()
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("given", [None, "./mlruns"])
def test_an_old_file_store_is_answered_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()  # which makes it MLflow's default
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(given)
    try:
        with pytest.raises(click.ClickException) as caught, mlflow_errors_in_one_line():
            mlflow.MlflowClient().search_experiments()
    finally:
        mlflow.set_tracking_uri(None)
    message = caught.value.message
    assert "set MLFLOW_TRACKING_URI=sqlite:///mlflow.db" in message and "\n" not in message
    assert "`mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db`" in message


MODEL = """
import mlflow

class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return model_input

mlflow.models.set_model(Echo())
"""


@pytest.mark.slow
def test_the_documented_way_frees_the_files_of_a_sweeps_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "weights").write_bytes(bytes(1000))
    try:
        experiment = mlflow.create_experiment("sweeps", (tmp_path / "files").as_uri())
        with mlflow.start_run(experiment_id=experiment) as sweep:
            mlflow.log_text("lr: 1e-4", "best.yaml")
            with mlflow.start_run(experiment_id=experiment, nested=True):
                mlflow.log_text("0.5", "scores.txt")
                mlflow.pyfunc.log_model(
                    name="model", python_model="model.py",
                    artifacts={"weights": str(tmp_path / "weights")}, pip_requirements=["mlflow"],
                )  # fmt: skip
        assert len(list(tmp_path.glob("files/**/weights"))) == 1
        page = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
        code, command = re.findall(r"```(?:python|bash)\n(.*?)```", page.split("<!-- free -->")[1],
                                   flags=re.DOTALL)  # fmt: skip
        exec(code.replace("RUN_ID", sweep.info.run_id), {})
        python = f"{sys.executable} -m mlflow gc"
        subprocess.run(command.replace("mlflow gc", python), shell=True, check=True)
        assert [path.name for path in (tmp_path / "files").rglob("*.*")] == ["best.yaml"]
        assert mlflow.get_run(sweep.info.run_id).info.lifecycle_stage == "active"
    finally:
        mlflow.set_tracking_uri(None)
