"""The files of an outbox, sent to a server that is a stand-in."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from nuswide.tracking import outbox as outbox_module
from nuswide.tracking.outbox import Outbox


class Server:
    """Receives files once `allowed` is set; fails while `is_down`."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str]] = []
        self.started, self.allowed = threading.Event(), threading.Event()
        self.is_down = False

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(metrics={}))

    def log_artifact(self, run_id: str, path: str, folder: str) -> None:
        content = Path(path).read_text()
        self.started.set()
        assert self.allowed.wait(60)
        if self.is_down:
            raise OSError("the server is down")
        self.received.append((f"{folder}/{Path(path).name}", content))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(outbox_module.mlflow, "MlflowClient", lambda: server)
    return server


def save(path: Path, text: str) -> Path:
    """Replace a file, as a checkpoint is."""
    path.with_suffix(".new").write_text(text)
    return path.with_suffix(".new").replace(path)


def test_a_file_sent_while_the_previous_one_is_uploaded_arrives_too(
    tmp_path: Path, server: Server
) -> None:
    outbox = Outbox(tmp_path / "outbox", "run")
    outbox.send_file(save(tmp_path / "last.pt", "one"), "checkpoint")
    assert server.started.wait(60)
    outbox.send_file(save(tmp_path / "last.pt", "two"), "checkpoint")
    server.allowed.set()
    assert outbox.close(60)
    assert server.received == [("checkpoint/last.pt", "one"), ("checkpoint/last.pt", "two")]


def test_a_file_sent_again_as_it_is_leaves_nothing_behind(tmp_path: Path, server: Server) -> None:
    outbox = Outbox(tmp_path / "outbox", "run")
    state = save(tmp_path / "last.pt", "one")
    outbox.send_file(state, "checkpoint")
    assert server.started.wait(60)
    for _ in range(2):
        outbox.send_file(state, "checkpoint")
    server.allowed.set()
    assert outbox.close(60)
    assert server.received == 2 * [("checkpoint/last.pt", "one")]
    assert not list((tmp_path / "outbox").rglob("last*"))


def test_after_an_outage_only_the_newest_file_is_sent_also_by_another_process(
    tmp_path: Path, server: Server
) -> None:
    server.is_down = True
    server.allowed.set()
    outbox = Outbox(tmp_path / "outbox", "run")
    outbox.send_file(save(tmp_path / "last.pt", "one"), "checkpoint")
    assert server.started.wait(60)
    outbox.send_file(save(tmp_path / "last.pt", "two"), "checkpoint")
    assert not outbox.close(0.1)
    outbox._thread.join(60)
    server.is_down = False
    assert Outbox(tmp_path / "outbox", "run").close(60)
    assert server.received == [("checkpoint/last.pt", "two")]


def test_a_damaged_count_of_what_was_sent_is_taken_for_none(tmp_path: Path, server: Server) -> None:
    (tmp_path / "sent").write_text("")
    assert Outbox(tmp_path, "run").close(60)
