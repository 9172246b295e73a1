"""The spool against a real tracking server, which is stopped and started again."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric
from PIL import Image

from nuswide.tracking.outbox import Outbox

pytestmark = pytest.mark.slow


class Server:
    """An `mlflow server` process that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store = f"sqlite:///{self.folder / 'server.db'}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1",
             "--backend-store-uri", store, "--artifacts-destination", str(self.folder / "files")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            time.sleep(0.25)
        raise AssertionError("the server did not answer within 60 s")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        mlflow.set_tracking_uri(server.url)
        yield server
        mlflow.set_tracking_uri(None)
    server.stop()


@pytest.fixture
def run_id(server: Server) -> str:
    return str(mlflow.MlflowClient().create_run("0").info.run_id)


def metrics(steps: range) -> list[Metric]:
    now_ms = round(time.time() * 1000)
    return [Metric("train/loss", step / 2, now_ms, step) for step in steps]


def recorded(run_id: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient().get_metric_history(run_id, "train/loss")
    return sorted((m.step, m.value) for m in history)


def points(steps: range) -> list[tuple[int, float]]:
    return [(step, step / 2) for step in steps]


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, format="png")
    return data.getvalue()


def pictures(run_id: str) -> list[str]:
    found = mlflow.MlflowClient().list_artifacts(run_id, "images")
    return [file.path for file in found if file.path.endswith(".png")]


def test_only_what_was_committed_is_sent(tmp_path: Path, run_id: str) -> None:
    outbox = Outbox(tmp_path, run_id)
    outbox.add_metrics(metrics(range(2500)))
    outbox.commit(outbox.mark())
    outbox.add_metrics(metrics(range(2500, 2600)))
    assert outbox.close(60)
    assert recorded(run_id) == points(range(2500))


def test_what_comes_after_the_mark_is_made_again_and_not_there_twice(
    tmp_path: Path, run_id: str
) -> None:
    outbox = Outbox(tmp_path, run_id)
    outbox.add_metrics(metrics(range(10)))
    mark = outbox.mark()
    outbox.add_metrics(metrics(range(10, 20)))
    outbox.commit(outbox.mark())  # as for a run that failed
    assert outbox.close(60)
    again = Outbox(tmp_path, run_id, keep_bytes=mark)
    again.add_metrics(metrics(range(10, 30)))
    again.commit(again.mark())
    assert again.close(60)
    assert recorded(run_id) == points(range(30))


def test_a_spool_on_another_machine_sends_nothing_twice(tmp_path: Path, run_id: str) -> None:
    for folder, steps in (("here", range(20)), ("there", range(8, 40))):
        outbox = Outbox(tmp_path / folder, run_id)
        outbox.add_metrics(metrics(steps))
        outbox.commit(outbox.mark())
        assert outbox.close(60)
    assert recorded(run_id) == points(range(40))


def test_an_outage_loses_nothing_and_keeps_nobody_waiting(
    tmp_path: Path, run_id: str, server: Server
) -> None:
    outbox = Outbox(tmp_path, run_id)
    slowest_s = 0.0
    for block in range(6):
        if block == 2:
            server.stop()
        if block == 4:
            server.start()
        start = time.perf_counter()
        outbox.add_metrics(metrics(range(100 * block, 100 * block + 100)))
        outbox.add_picture(png(), "val/predictions", step=block)
        outbox.commit(outbox.mark())
        slowest_s = max(slowest_s, time.perf_counter() - start)
        time.sleep(1.5)
    assert outbox.close(60)
    assert recorded(run_id) == points(range(600))
    assert len(pictures(run_id)) == 6
    assert slowest_s < 5  # a call that waits for MLflow's own retries takes longer


def test_a_server_that_stays_away_is_told_of_and_the_rest_is_sent_later(
    tmp_path: Path, run_id: str, server: Server
) -> None:
    outbox = Outbox(tmp_path, run_id)
    server.stop()
    outbox.add_metrics(metrics(range(50)))
    outbox.add_picture(png(), "val/predictions", step=3)
    outbox.commit(outbox.mark())
    assert not outbox.close(2)
    server.start()
    outbox = Outbox(tmp_path, run_id)
    outbox.commit(outbox.mark())
    assert outbox.close(60)
    assert recorded(run_id) == points(range(50))
    assert len(pictures(run_id)) == 1


def test_a_file_is_sent_as_it_was(tmp_path: Path, run_id: str) -> None:
    state = tmp_path / "last.pt"
    state.write_text("one")
    outbox = Outbox(tmp_path / "spool", run_id)
    outbox.send_file(state, "checkpoint")
    replacement = tmp_path / "new"
    replacement.write_text("two")
    replacement.replace(state)
    assert outbox.close(60)
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/checkpoint/last.pt") == "one"
