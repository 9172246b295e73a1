"""A `nuswide serve` process and requests to it, for tests and benchmarks."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Registered

JPEG = {"Content-Type": "image/jpeg"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A running `nuswide serve`."""

    process: subprocess.Popen[bytes]
    port: int
    output: Path
    seconds_to_answer: float

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send one request on its own connection; return status and body."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, body, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def scores(self, photo: bytes) -> dict[str, float]:
        """Return all scores of a photo."""
        status, body = self.ask("/invocations?all_scores=true", photo, JPEG)
        assert status == 200, body
        found: dict[str, float] = json.loads(body)["predictions"][0]["all_scores"]
        return found

    def send(self, content: bytes) -> socket.socket:
        """Return a connection on which the bytes have been sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        connection.sendall(content)
        return connection

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        listed = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]

    def resident_mb(self) -> float:
        """Return the resident memory of the server and its workers, in MB."""
        return sum(map(_resident_mb, [self.process.pid, *self.workers()]))

    def log(self) -> list[dict[str, Any]]:
        """Return the access log so far."""
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def _resident_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1000
    return 0.0


@contextlib.contextmanager
def serving(
    folder: Path, env: dict[str, str], *options: str, model: str = "models:/small@champion"
) -> Iterator[Server]:
    """Start a server, wait until it responds, and stop it on exit."""
    port, output = free_port(), folder / f"serve-{time.time_ns()}.log"
    command = [sys.executable, "-m", "nuswide", "serve", "--model", model, "--port", str(port)]
    begun = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*command, *options], cwd=folder, env=env, stdout=file, stderr=file
        )
    try:
        server = Server(process, port, output, 0)
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if server.ask("/ping")[0] == 200:
                    break
            assert process.poll() is None, output.read_text()
            assert time.monotonic() - begun < 240, output.read_text()
            time.sleep(0.05)
        server.seconds_to_answer = time.monotonic() - begun
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        process.wait(120)


@pytest.fixture(scope="session")
def server(registered: "Registered") -> Iterator[Server]:
    """One server with two workers and short time limits, for all tests of a process."""
    limits = "--header_s 1 --body_s 1 --connections 12 --pixels 1000000 --workers 2".split()
    with serving(registered.workspace.folder, registered.workspace.env, *limits) as server:
        yield server
