"""A PostgreSQL server for one test, on a free loopback port, removed after the `with` block.

PostgreSQL does not run as root; for root, its programs run as the package's user postgres.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_FOUND = sorted(
    Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4].split(".")[0])
)
INITDB = str(_FOUND[-1]) if _FOUND else shutil.which("initdb")
_SETTINGS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"


class Server:
    """A server with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._control = (str(Path(str(INITDB)).with_name("pg_ctl")), "-D", str(folder / "data"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    def create(self) -> None:
        """Create the database cluster."""
        if os.getuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")
        data = str(self._folder / "data")
        _run(str(INITDB), "-D", data, "-A", "trust", "-U", "sweeper", "--no-sync", "-E", "UTF8")

    @property
    def url(self) -> str:
        """The URL of its database."""
        return f"postgresql://sweeper@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        log, settings = str(self._folder / "log"), f"{_SETTINGS} -p {self._port}"
        _run(*self._control, "-l", log, "-o", settings, "-w", "start")

    def stop(self) -> None:
        """Stop it immediately, as a power cut would. Does nothing if it is not running."""
        _run(*self._control, "-m", "immediate", "-w", "stop", check=False)


@contextmanager
def server() -> Iterator[Server]:
    """Start a server; skip the test where PostgreSQL is not installed."""
    if not INITDB:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="nuswide-postgres-"))
    own = Server(folder)
    try:
        own.create()
        own.start()
        yield own
    finally:
        own.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _run(*command: str, check: bool = True) -> None:
    own = ("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()
    # Into a file: the server would keep a pipe open, and subprocess would wait for it.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run((*own, *command), stdout=output, stderr=output, cwd="/", timeout=120)
        output.seek(0)
        assert not check or done.returncode == 0, output.read()
