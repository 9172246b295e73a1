"""Sockets, worker processes and signals: how the server starts and stops.

serve_model("models:/nuswide-tagger@champion", "127.0.0.1", 5001, Settings())
"""

import asyncio
import ipaddress
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Any

import click
import h11
import mlflow
import uvicorn
from mlflow.entities.model_registry import ModelVersion
from uvicorn.protocols.http.h11_impl import H11Protocol

from nuswide.deployment.serve.settings import Settings
from nuswide.tracking.registry import address_of, find_version

_SPAWN = multiprocessing.get_context("spawn")
_LINGER_S = 0.5  # for requests that were sent before the signal and have not been read yet
_MAX_HEADER_BYTES = 32 * 2**10
_MIN_KEY = 16


def serve_model(uri: str, host: str, port: int, settings: Settings) -> None:
    """Serve a registered model until a signal. Raises click.ClickException if it cannot start."""
    version = find_version(uri)
    key = read_key(settings)
    listener = _listen(host, port)
    # `mlflow run` waits until the server ends but is often killed with it: end its run now.
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        mlflow.MlflowClient().set_terminated(run_id)
    with tempfile.TemporaryDirectory(prefix="nuswide-serve-") as temporary:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = temporary
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        # Otherwise glibc keeps freed memory for each thread, and a worker's memory grows for hours.
        os.environ.setdefault("MALLOC_ARENA_MAX", "2")
        folder = Path(temporary) / "model"
        folder.mkdir()
        mlflow.artifacts.download_artifacts(address_of(version), dst_path=str(folder))
        worker = WorkerConfig(folder, version.name, str(version.version), settings, key)
        Supervisor(worker, listener).run(_startup_message(version, host, listener, key))


def read_key(settings: Settings) -> str | None:
    """Return the API key from the file or the environment; None if neither is set."""
    where, key = "NUSWIDE_API_KEY", os.environ.get("NUSWIDE_API_KEY")
    if settings.api_key_file:
        where = settings.api_key_file
        try:
            key = Path(where).read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise click.ClickException(f"cannot read the key in {where} ({reason})") from None
    if key is not None and not (len(key) >= _MIN_KEY and key.isascii() and key.isprintable()):
        raise click.ClickException(
            f"the key in {where} must be {_MIN_KEY} or more printable ASCII characters"
        )
    return key


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        # asyncio sets TCP_NODELAY only on sockets whose protocol is given as TCP. Without it, the
        # body of a response waits 40 ms for the acknowledgement of its headers.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)  # now, so that a port in use is an error before the model loads
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from error
    return listener


def _startup_message(
    version: ModelVersion, host: str, listener: socket.socket, key: str | None
) -> str:
    shown = f"[{host}]" if ":" in host else host
    port = listener.getsockname()[1]
    text = f"{version.name} version {version.version} is served on http://{shown}:{port}/"
    bound = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    if not bound.is_loopback and key is None:
        text += (
            "\nwarning: anyone who can reach this machine has access; set NUSWIDE_API_KEY to a key"
        )
    return text


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker process gets, through a pipe. key: the API key, if any."""

    folder: Path
    name: str
    version: str
    settings: Settings
    key: str | None

    def app(self) -> Any:
        """Load the model and return the ASGI app."""
        from mlflow.pyfunc import scoring_server

        from nuswide.deployment.serve.limits import LimitedApp
        from nuswide.deployment.serve.model import open_model
        from nuswide.deployment.serve.telemetry import Telemetry

        # LimitedApp has its own time limit; MLflow's would free a slot whose thread still runs.
        os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(10**6)
        pyfunc, tagger = open_model(self.folder, self.settings)
        pairs = zip(tagger.labels, tagger.thresholds.tolist(), strict=True)
        card = {
            "name": self.name,
            "version": self.version,
            "image_size_px": tagger.preprocessing.size_px,
            "body_mib": self.settings.body_mib,
            "labels": [{"label": label, "threshold": round(own, 6)} for label, own in pairs],
        }
        scoring = scoring_server.init(pyfunc)
        return LimitedApp(scoring, card, self.settings, self.key, Telemetry(sys.stdout))


def run_worker(worker: WorkerConfig, listener: socket.socket, ready: Any) -> None:
    """Serve on the listener until SIGTERM or the parent's end: the main function of a worker."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    settings = worker.settings
    config = uvicorn.Config(
        worker.app(), http=limited_protocol(settings), ws="none", lifespan="off", loop="asyncio",
        access_log=False, log_config=None, server_header=False, proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_s, timeout_graceful_shutdown=settings.stop_s,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
    )  # fmt: skip
    GracefulServer(config, ready).run(sockets=[listener])


def _stop_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


class GracefulServer(uvicorn.Server):
    """uvicorn's server, but it responds to every request that was sent before the signal to stop.

    uvicorn closes connections that it has accepted but not read from, and those in the backlog.
    """

    def __init__(self, config: uvicorn.Config, ready: Any) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell the parent."""
        await super().startup(sockets)
        self._ready.release()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the backlog, close the listener, read what was accepted, and finish."""
        headers = [*self.server_state.default_headers, (b"connection", b"close")]
        self.server_state.default_headers = headers  # of requests to come; then of those running
        for protocol in self.server_state.connections:
            if isinstance(protocol, H11Protocol) and protocol.cycle:
                protocol.cycle.default_headers = headers
        await asyncio.sleep(_LINGER_S)
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LINGER_S)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop, without raising the signal again after the shutdown."""
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with limits on connections and on the headers' time."""

    limits: Settings  # set by limited_protocol
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection beyond the limit."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Time headers that are incomplete."""
        super().data_received(data)
        self._start_timer()

    def on_response_complete(self) -> None:
        """Close the connection if the rest of the request will not be read."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        if self.transport.is_closing():
            self._abort_later()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        self._stop_timer()

    def _abort_later(self) -> None:
        """Abort a closing connection whose client does not read the response."""
        self.loop.call_later(self.limits.body_s, self.transport.abort)

    def _start_timer(self) -> None:
        """Run the timer while headers are incomplete."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None and self.timeout_keep_alive_task is None:
            self._timer = self.loop.call_later(self.limits.header_s, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limited_protocol(settings: Settings) -> type[LimitedProtocol]:
    """Return the protocol with these limits, as uvicorn takes a class."""
    return type("_LimitedProtocol", (LimitedProtocol,), {"limits": settings})


class Supervisor:
    """The parent process: starts workers, replaces those that die, and forwards signals.

    uvicorn.supervisors.Multiprocess (0.54) does not replace it: its workers outlive a killed
    parent, a worker that dies on starting is restarted without end instead of ending the server
    with an error, and it waits without limit for a worker that does not stop.
    """

    def __init__(self, worker: WorkerConfig, listener: socket.socket) -> None:
        self._config = worker
        self._listener = listener
        self._ready = _SPAWN.Semaphore(0)
        self._stopping = False
        self._workers: list[SpawnProcess] = []

    def run(self, startup_message: str) -> None:
        """Serve until SIGTERM or SIGINT, then until the workers have finished."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._stop)
        self._workers = [self._start() for _ in range(self._config.settings.workers)]
        self._wait_until_ready()
        if not self._stopping:
            click.echo(startup_message, err=True)
        while not self._stopping:
            connection.wait([w.sentinel for w in self._workers], timeout=0.5)
            for place, worker in enumerate(self._workers):
                if worker.exitcode is not None and not self._stopping:
                    self._workers[place] = self._replace(worker)
        self._finish()

    def _start(self) -> SpawnProcess:
        worker = _SPAWN.Process(target=run_worker, args=(self._config, self._listener, self._ready))
        worker.start()
        return worker

    def _wait_until_ready(self) -> None:
        waiting = len(self._workers)
        while waiting and not self._stopping:
            waiting -= self._ready.acquire(timeout=0.2)
            died = any(worker.exitcode is not None for worker in self._workers)
            if died and not self._stopping:  # in this order: a stop ends the workers, too
                self._stop(signal.SIGTERM, None)
                self._finish()
                raise click.ClickException("a worker failed to start; its error is above")

    def _replace(self, dead: SpawnProcess) -> SpawnProcess:
        from prometheus_client.multiprocess import mark_process_dead

        click.echo(f"worker {dead.pid} died (exit code {dead.exitcode}); restarting", err=True)
        mark_process_dead(dead.pid)
        time.sleep(0.5)  # so that workers that die at once are not restarted in a busy loop
        return self._start()

    def _stop(self, sig: int, frame: FrameType | None) -> None:
        self._stopping = True
        for worker in self._workers:
            if worker.pid and worker.exitcode is None:
                os.kill(worker.pid, signal.SIGTERM)

    def _finish(self) -> None:
        self._stop(signal.SIGTERM, None)  # a worker may have started meanwhile
        self._listener.close()
        end = time.monotonic() + self._config.settings.stop_s + 10
        for worker in self._workers:
            worker.join(max(0, end - time.monotonic()))
            if worker.exitcode is None:
                worker.kill()
                worker.join()
