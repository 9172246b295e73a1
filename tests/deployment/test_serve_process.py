"""The server as a process: sockets, workers, signals."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import mlflow
import pytest
from click.testing import CliRunner
from conftest import Registered
from hostile import Hostile, requests
from hypothesis import HealthCheck, given, settings
from serving import JPEG, Server, serving
from test_serve_limits import photo, scores_of

from nuswide.cli import main
from nuswide.deployment.serve.server import Supervisor, _listen, read_key
from nuswide.deployment.serve.settings import Settings
from nuswide.tagger import Tagger

pytestmark = pytest.mark.slow

PHOTO = photo(33)
REQUEST = (
    b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(PHOTO), PHOTO)
)


@pytest.fixture(scope="module")
def expected(registered: Registered) -> dict[str, float]:
    return scores_of(Tagger.load(registered.folder / "artifacts" / "bundle"), PHOTO)


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_two_workers_return_the_exact_scores_and_sum_their_metrics(
    server: Server, expected: dict[str, float]
) -> None:
    assert len(server.workers()) == 2
    before = pictures_in(server)
    threads = [threading.Thread(target=server.scores, args=(PHOTO,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.scores(PHOTO) == expected
    assert pictures_in(server) == before + 9


def pictures_in(server: Server) -> float:
    text = server.ask("/metrics")[1].decode()
    (line,) = [n for n in text.splitlines() if n.startswith("nuswide_pictures_total")]
    return float(line.split()[1])


def test_a_connection_with_incomplete_headers_is_closed(server: Server) -> None:
    for start in (b"", b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nX: "):
        assert read_all(server.send(start)) == b""
    kept = server.send(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert kept.recv(65536).startswith(b"HTTP/1.1 200")
    kept.sendall(b"GET /pi")  # a second request that does not end
    assert b"HTTP" not in read_all(kept)


def test_an_incomplete_body_gets_408(server: Server) -> None:
    assert read_all(server.send(REQUEST[:-10])).startswith(b"HTTP/1.1 408")


def test_a_body_too_large_gets_413_before_it_is_read(server: Server) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    head = head.replace(b"Host: x", b"Host: localhost")
    told = head + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
    assert read_all(server.send(told)).startswith(b"HTTP/1.1 413")
    sent = server.ask("/invocations", bytes(20 * 2**20), JPEG)
    assert sent[0] == 413 and b"16 MiB" in sent[1]


def test_connections_beyond_the_limit_are_closed_and_the_others_served(
    server: Server, expected: dict[str, float]
) -> None:
    held = [server.send(b"POST /") for _ in range(40)]
    for connection in held:
        assert read_all(connection) == b""
    assert server.scores(PHOTO) == expected


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(request=requests())
def test_no_request_breaks_the_process(
    server: Server, expected: dict[str, float], request: Hostile
) -> None:
    workers = server.workers()
    path = request.path + ("?" + request.query if request.query else "")
    head = f"{request.method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if request.content_type is not None:
        head += f"Content-Type: {request.content_type}\r\n"
    head += f"Content-Length: {len(request.body)}\r\n\r\n"
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        answer = read_all(server.send(head.encode() + request.body))
        assert int(answer.split()[1]) < 500, (request, answer)
    assert server.scores(PHOTO) == expected
    assert server.workers() == workers


def test_a_worker_that_dies_is_replaced(server: Server, expected: dict[str, float]) -> None:
    dead, other = server.workers()
    os.kill(dead, signal.SIGKILL)
    until(lambda: len(set(server.workers()) - {dead}) == 2)
    assert other in server.workers()
    assert server.scores(PHOTO) == expected


def until(condition: object) -> None:
    end = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)


@dataclass
class Sent:
    at: float
    answer: bytes


def keep_asking(server: Server, sent: list[Sent], stop: threading.Event) -> None:
    """Send requests, each on a new connection, until the server accepts no more."""
    while not stop.is_set():
        try:
            connection = server.send(REQUEST)
        except OSError:
            return
        sent.append(Sent(time.monotonic(), b""))
        sent[-1].answer = read_all(connection)


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_leaves_no_accepted_request_unanswered(
    registered: Registered, workers: int
) -> None:
    with serving(
        registered.workspace.folder, registered.workspace.env, "--workers", str(workers)
    ) as server:
        stop, sent = threading.Event(), [[] for _ in range(16)]
        threads = [threading.Thread(target=keep_asking, args=(server, s, stop)) for s in sent]
        for thread in threads:
            thread.start()
        until(lambda: sum(map(len, sent)) > 60)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        stop.set()
        for thread in threads:
            thread.join()
    before = [one for many in sent for one in many if one.at < told]
    assert len(before) > 30
    statuses = [one.answer.split(b" ")[1] if one.answer else None for one in before]
    assert set(statuses) == {b"200"}, statuses


def test_a_stop_while_workers_start_is_no_failed_start() -> None:
    supervisor = Supervisor(None, None)  # type: ignore[arg-type]

    def stop(timeout: float) -> bool:
        supervisor._stopping = True
        return False

    supervisor._ready = SimpleNamespace(acquire=stop)
    supervisor._workers = [SimpleNamespace(exitcode=0)]  # type: ignore[list-item]
    supervisor._wait_until_ready()


def test_workers_end_when_their_parent_is_killed(registered: Registered) -> None:
    with serving(registered.workspace.folder, registered.workspace.env) as server:
        (worker,) = server.workers()
        server.process.kill()
        until(lambda: not Path(f"/proc/{worker}").exists())


def test_the_log_is_json_and_goes_to_standard_output(server: Server) -> None:
    server.scores(PHOTO)
    last = [e for e in server.log() if e["path"] == "/invocations"][-1]
    assert last["status"] == 200 and last["pictures"] == 1 and last["worker"] in server.workers()


@pytest.fixture
def tracking(registered: Registered) -> Iterator[None]:
    mlflow.set_tracking_uri(registered.workspace.env["MLFLOW_TRACKING_URI"])
    yield
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "workers=0 must be 1 or more"),
        (["--body_s", "nan"], "body_s=nan must be"),
        (["--api_key_file", "nowhere"], "cannot read the key in nowhere"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_an_invalid_option_is_one_line(tracking: None, options: list[str], words: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--model", "models:/small@champion", *options])
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit)
    assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_the_key_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_key(Settings()) is None
    monkeypatch.setenv("NUSWIDE_API_KEY", "from-the-environment")
    assert read_key(Settings()) == "from-the-environment"
    (tmp_path / "key").write_text("from-a-file-of-ours\n")
    assert read_key(Settings(api_key_file=str(tmp_path / "key"))) == "from-a-file-of-ours"
    for wrong in ("short", "", "sixteen-and-more é", "sixteen and\nmore lines"):
        (tmp_path / "key").write_text(wrong)
        with pytest.raises(click.ClickException, match="16 or more printable ASCII"):
            read_key(Settings(api_key_file=str(tmp_path / "key")))


def test_responses_are_sent_without_delay() -> None:
    """Headers and body are written separately; without TCP_NODELAY the body waits for an ACK."""

    async def option() -> int:
        accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        listener = _listen("127.0.0.1", 0)
        server = await asyncio.start_server(lambda _, w: accepted.put_nowait(w), sock=listener)
        async with server:
            _, own = await asyncio.open_connection(*listener.getsockname())
            writer = await accepted.get()
            found = writer.get_extra_info("socket")
            value: int = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            own.close()
        return value

    assert asyncio.run(option()) == 1
