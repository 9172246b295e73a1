"""A PostgreSQL server of a test's own, on a free port of the loopback, gone with the `with` block.

Its programs refuse to be root: there they run as the user that their package has made.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOUND = sorted(
    Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4].split(".")[0])
)
INITDB = str(_FOUND[-1]) if _FOUND else shutil.which("initdb")
_SETTINGS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"


@contextmanager
def server() -> Iterator[str]:
    """Start a server; gives the address of its database."""
    assert INITDB
    folder = Path(tempfile.mkdtemp(prefix="nuswide-postgres-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, log = str(folder / "data"), str(folder / "log")
    control = str(Path(INITDB).with_name("pg_ctl"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        _run(INITDB, "-D", data, "-A", "trust", "-U", "sweeper", "--no-sync", "-E", "UTF8")
        _run(control, "-D", data, "-l", log, "-o", f"{_SETTINGS} -p {port}", "-w", "start")
        yield f"postgresql://sweeper@127.0.0.1:{port}/postgres"
    finally:
        _run(control, "-D", data, "-m", "immediate", "-w", "stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _run(*command: str, check: bool = True) -> None:
    own = ("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()
    # Into files, not pipes: the server would keep a pipe open, and subprocess would wait for it.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run((*own, *command), stdout=output, stderr=output, cwd="/", timeout=120)
        output.seek(0)
        assert not check or done.returncode == 0, output.read()
