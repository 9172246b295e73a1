"""Atomic replacement and locks, with writers and holders that are killed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from nuswide.core import files
from nuswide.core.files import atomic_write, exclusive_lock, reserve_bytes, temporary_path

HOLD = """
import sys
from pathlib import Path
from nuswide.core.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), busy="waiting", wait=True):
    print("held", flush=True)
    sys.stdin.read()
"""
WITHOUT_FCNTL = "import sys\nsys.modules['fcntl'] = None\n"


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for content in ("one\r\n", "größer"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content.encode()
    with atomic_write(path, "wb") as file:
        file.write(b"\0\1")
    assert path.read_bytes() == b"\0\1" and os.listdir(tmp_path) == ["state"]


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state"]
    temporary_path(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), atomic_write(path) as file:
        file.write("new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state"]


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("old")
    code = """
        import sys, time
        from pathlib import Path
        from nuswide.core.files import atomic_write
        with atomic_write(Path(sys.argv[1])) as file:
            file.write("half of the new")
            file.flush()
            print("written", flush=True)
            time.sleep(600)
    """
    writer = start(code, path)
    assert said(writer) == "written"
    writer.kill()
    writer.wait()
    assert path.read_text() == "old" and temporary_path(path).read_text() == "half of the new"
    with atomic_write(path) as file:
        file.write("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["state"]


def test_content_and_name_are_on_disk_before_the_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    synced: list[tuple[bool, bool]] = []  # of a folder, after the replacement

    def fsync(descriptor: int) -> None:
        is_folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        synced.append((is_folder, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(path) as file:
        file.write("new")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("system", ["", WITHOUT_FCNTL], ids=["fcntl", "without fcntl"])
def test_a_lock_excludes_other_processes_and_ends_with_the_one_that_held_it(
    tmp_path: Path, system: str
) -> None:
    lock = tmp_path / "lock"
    first = start(system + HOLD, lock)
    assert said(first) == "held"
    second = start(system + HOLD, lock)
    assert said(second) == "waiting"
    first.kill()
    first.wait()
    assert said(second) == "held"  # the dead one's lock is gone
    third = start(system + HOLD, lock)
    assert said(third) == "waiting"
    assert second.communicate()[0] == "" and second.returncode == 0
    assert said(third) == "held"
    third.communicate()


def test_without_waiting_a_busy_lock_is_the_callers_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = start(HOLD, lock)
    assert said(holder) == "held"
    with pytest.raises(click.ClickException, match="run 7 is being trained"):
        with exclusive_lock(lock, busy="run 7 is being trained"):
            pass
    holder.send_signal(signal.SIGTERM)
    holder.wait()
    with exclusive_lock(lock):
        pass
    with pytest.raises(ZeroDivisionError), exclusive_lock(lock):
        _ = 1 / 0
    with exclusive_lock(lock):  # an error lets go of it, too
        pass


@pytest.mark.parametrize("size", [5, 2**20, 2**20 + 3])
@pytest.mark.parametrize("has_fallocate", [True, False])
def test_reserved_space_is_on_the_disk(
    tmp_path: Path, size: int, has_fallocate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "pixels").open("wb") as file:
        reserve_bytes(file, size)
    stat = (tmp_path / "pixels").stat()
    assert stat.st_size == size and stat.st_blocks * 512 >= size


def test_data_is_synced_where_fdatasync_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "fdatasync", raising=False)
    with (tmp_path / "file").open("wb") as file:
        files.sync_data(file.fileno())
