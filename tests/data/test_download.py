import errno
import gzip
import hashlib
import io
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import types
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from nuswide.data import archives
from nuswide.data import download as module
from nuswide.data.archives import extract
from nuswide.data.download import ARCHIVES, download, fetch

CONTENT = bytes(range(256)) * 1024  # 256 KiB, no two places alike at a wrong offset
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(__file__).resolve().parents[2]


class Server(ThreadingHTTPServer):
    """A loopback server of one file, with the faults a test asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.stops_after: list[int] = []  # bytes of each answer after which it breaks off
        self.statuses: list[int] = []  # sent in place of the file
        self.has_range = self.has_if_range = self.has_length = True
        self.encoding: str | None = None
        self.accepted: list[str | None] = []  # Accept-Encoding
        self.claimed: int | None = None  # in place of the file's length
        self.stall: threading.Event | None = None  # waited for where an answer would break off
        self.asked: list[tuple[str | None, str | None]] = []  # Range and If-Range
        self.secrets: list[tuple[str, str | None]] = []  # path with query, and Authorization

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up, as some tests make it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/pictures.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.asked.append((wanted, self.headers["If-Range"]))
        server.accepted.append(self.headers["Accept-Encoding"])
        server.secrets.append((self.path, self.headers["Authorization"]))
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            return self.end_headers()
        is_same = not server.has_if_range or self.headers["If-Range"] in (None, server.etag)
        start = int(wanted[6:-1]) if wanted and server.has_range and is_same else 0
        total = len(server.content) if server.claimed is None else server.claimed
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"no\n")
            return None
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.has_length:
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        self.send_body(server.content[start:])

    def send_body(self, rest: bytes) -> None:
        stop = self.server.stops_after.pop(0) if self.server.stops_after else len(rest)
        self.wfile.write(rest[:stop])
        if stop < len(rest) and self.server.stall:
            self.server.stall.wait(30)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Notes the pauses in place of making them."""
    paused: list[float] = []
    fake = types.SimpleNamespace(sleep=paused.append)
    monkeypatch.setattr(module, "time", fake)
    return paused


def error_of(call: Callable[[], Any]) -> str:
    """What a user reads: one line."""
    with pytest.raises(click.ClickException) as caught:
        call()
    message = caught.value.message
    assert "\n" not in message and len(message) < 800
    return message


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Fetching


def test_a_file_arrives_whole_and_nothing_else_is_left(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pictures.tar.gz"
    assert fetch(server.url, out, sha256=SHA256.upper(), size_bytes=len(CONTENT)) == out
    assert out.read_bytes() == CONTENT
    assert names_in(out.parent) == ["pictures.tar.gz"]


def test_a_broken_download_continues_where_it_stopped(
    server: Server, tmp_path: Path, no_pauses: list[float]
) -> None:
    server.stops_after = [1000, 2000]
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [(None, None), ("bytes=1000-", '"one"'), ("bytes=3000-", '"one"')]
    assert no_pauses == [1, 2]


def test_a_server_that_always_breaks_off_is_given_up_and_continued_by_the_next_call(
    server: Server, tmp_path: Path, no_pauses: list[float]
) -> None:
    server.stops_after = [10] * 6
    message = error_of(lambda: fetch(server.url, tmp_path / "a"))
    assert "was interrupted" in message and "run the command again" in message
    assert no_pauses == [1, 2, 4, 8, 16]
    assert (tmp_path / "a.part").read_bytes() == CONTENT[:60]
    fetch(server.url, tmp_path / "a")
    assert server.asked[-1] == ("bytes=60-", '"one"')
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_without_range_sends_all_again(server: Server, tmp_path: Path) -> None:
    server.has_range, server.stops_after = False, [HALF]
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
    assert [wanted for wanted, _ in server.asked] == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("has_if_range", [True, False])
def test_a_file_that_changed_between_tries_is_fetched_afresh(
    server: Server, tmp_path: Path, has_if_range: bool
) -> None:
    server.stops_after, server.has_if_range = [10] * 6, has_if_range
    error_of(lambda: fetch(server.url, tmp_path / "a"))
    server.content, server.etag = b"new" * HALF, '"two"'
    assert fetch(server.url, tmp_path / "a").read_bytes() == server.content


def test_without_etag_and_checksum_nothing_is_patched_together(
    server: Server, tmp_path: Path
) -> None:
    server.etag, server.stops_after = None, [HALF]
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
    assert [wanted for wanted, _ in server.asked] == [None, None]


def test_without_etag_a_checksum_lets_it_continue(server: Server, tmp_path: Path) -> None:
    server.etag, server.stops_after = None, [HALF]
    fetch(server.url, tmp_path / "a", sha256=SHA256)
    assert server.asked == [(None, None), (f"bytes={HALF}-", None)]


def test_the_part_of_another_address_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.stops_after = [10] * 6
    error_of(lambda: fetch(server.url, tmp_path / "a"))
    assert fetch(f"{server.url}2", tmp_path / "a").read_bytes() == CONTENT
    assert server.asked[-1] == (None, None)


def test_a_part_that_is_all_of_it_is_taken(server: Server, tmp_path: Path) -> None:
    server.stops_after = [10] * 6
    error_of(lambda: fetch(server.url, tmp_path / "a"))
    (tmp_path / "a.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "a", sha256=SHA256)
    assert server.asked[-1][0] == f"bytes={len(CONTENT)}-"


def test_a_part_longer_than_the_file_is_dropped(server: Server, tmp_path: Path) -> None:
    server.stops_after = [10] * 6
    error_of(lambda: fetch(server.url, tmp_path / "a"))
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT


def test_a_killed_download_is_continued(server: Server, tmp_path: Path) -> None:
    server.stops_after, server.stall = [HALF], threading.Event()
    code = "import sys; from pathlib import Path; from nuswide.data.download import fetch\n"
    code += "fetch(sys.argv[1], Path(sys.argv[2]))"
    part = tmp_path / "a.part"
    with subprocess.Popen(
        [sys.executable, "-c", code, server.url, tmp_path / "a"], cwd=ROOT
    ) as one:
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        one.send_signal(signal.SIGKILL)
    server.stall.set()
    size = part.stat().st_size
    assert one.returncode == -signal.SIGKILL and 0 < size <= HALF
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
    assert server.asked[-1] == (f"bytes={size}-", '"one"')


@pytest.mark.parametrize(
    "given", [{"sha256": "0" * 64}, {"size_bytes": 5}, {"size_bytes": 2 * len(CONTENT)}]
)
@pytest.mark.parametrize("has_length", [True, False])
def test_a_wrong_file_is_removed(
    server: Server, tmp_path: Path, given: dict[str, Any], has_length: bool
) -> None:
    server.has_length = has_length
    message = error_of(lambda: fetch(server.url, tmp_path / "a", **given))
    assert str(next(iter(given.values()))) in message and "it was removed" in message
    assert names_in(tmp_path) == []


def test_a_range_longer_than_announced_is_cut_off(server: Server, tmp_path: Path) -> None:
    server.stops_after = [10] * 6
    error_of(lambda: fetch(server.url, tmp_path / "a"))
    server.claimed, server.has_length = 5000, False
    assert "more than its 5000 bytes" in error_of(lambda: fetch(server.url, tmp_path / "a"))
    assert names_in(tmp_path) == []


def test_a_range_shorter_than_announced_is_continued(server: Server, tmp_path: Path) -> None:
    server.stops_after = [10] * 6
    error_of(lambda: fetch(server.url, tmp_path / "a"))
    server.stops_after, server.has_length = [10], False
    assert fetch(server.url, tmp_path / "a").read_bytes() == CONTENT
    assert [wanted for wanted, _ in server.asked[-2:]] == ["bytes=60-", "bytes=70-"]


def test_a_file_that_the_server_calls_compressed_stays_packed(
    server: Server, tmp_path: Path
) -> None:
    server.content, server.encoding = gzip.compress(CONTENT), "gzip"
    assert fetch(server.url, tmp_path / "a").read_bytes() == server.content
    assert server.accepted == ["identity"]


def test_an_endless_file_is_cut_off(server: Server, tmp_path: Path) -> None:
    server.content, server.has_length = bytes(50_000_000), False
    message = error_of(lambda: fetch(server.url, tmp_path / "a", size_bytes=100_000))
    assert "more than its 100000 bytes" in message and len(server.asked) == 1
    assert names_in(tmp_path) == []


def test_a_file_without_room_on_the_disk_is_not_begun(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    assert "make room" in error_of(lambda: fetch(server.url, tmp_path / "a"))
    assert names_in(tmp_path) == []


def test_a_missing_file_is_named_at_once(server: Server, tmp_path: Path) -> None:
    server.statuses = [404]
    message = error_of(lambda: fetch(server.url, tmp_path / "a"))
    assert "404" in message and server.url in message
    assert len(server.asked) == 1 and names_in(tmp_path) == []


def test_a_refused_port_is_an_error_at_once(tmp_path: Path, no_pauses: list[float]) -> None:
    with socket.socket() as bound:  # bound and not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/a"
        message = error_of(lambda: fetch(url, tmp_path / "a"))
    assert "refused" in message and url in message and no_pauses == []


def test_a_finished_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "a", sha256=SHA256) == tmp_path / "a"
    assert server.asked == []


def test_a_file_that_is_there_and_differs_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"mine")
    assert "move it away" in error_of(lambda: fetch(server.url, tmp_path / "a", sha256=SHA256))
    assert (tmp_path / "a").read_bytes() == b"mine" and server.asked == []


def test_secrets_in_an_address_are_sent_and_never_shown(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = server.url.replace("//", "//me:hidden@") + "?token=hidden"
    server.stops_after = [10] * 6
    said = error_of(lambda: fetch(secret, tmp_path / "a"))
    said += "".join(path.read_text() for path in tmp_path.glob("*.json"))
    server.statuses = [403]
    said += error_of(lambda: fetch(secret, tmp_path / "a"))
    server.shutdown()
    server.server_close()
    said += error_of(lambda: fetch(secret, tmp_path / "a"))
    said += "".join(capfd.readouterr())
    assert server.url in said and "hidden" not in said
    assert set(server.secrets) == {("/pictures.tar.gz?token=hidden", "Basic bWU6aGlkZGVu")}


@pytest.mark.parametrize(
    "url", ["file:///etc/hosts", "ftp://a/b", "articel", "http://", "http://[a/hidden", "//a/b", ""]
)
def test_only_http_and_known_names_are_fetched(tmp_path: Path, url: str) -> None:
    message = error_of(lambda: fetch(url, tmp_path / "a"))
    assert "https://" in message and "article" in message and "hidden" not in message


def test_a_redirect_to_a_local_file_is_refused(server: Server, tmp_path: Path) -> None:
    class Redirect(Handler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "file:///etc/hosts")
            self.end_headers()

    server.RequestHandlerClass = Redirect
    assert "InvalidSchema" in error_of(lambda: fetch(server.url, tmp_path / "a"))
    assert names_in(tmp_path) == []


def test_a_mistyped_checksum_is_seen_before_fetching(server: Server, tmp_path: Path) -> None:
    assert "64 hex" in error_of(lambda: fetch(server.url, tmp_path / "a", sha256="abc"))
    assert server.asked == []


# Google Drive

ID = "0B7IzDz-4yH_HMFdiSE44R1lselE"


def pretend_gdown(monkeypatch: pytest.MonkeyPatch, total: int) -> list[str]:
    asked: list[str] = []

    def download(*, id: str, output: str, progress: Any, **_: Any) -> str:
        asked.append(id)
        Path(f"{output}12345678.part").write_bytes(CONTENT)
        progress(len(CONTENT), total)
        os.replace(f"{output}12345678.part", output)
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    return asked


@pytest.mark.parametrize(
    "url",
    [ID, ARCHIVES["article"], f"https://drive.google.com/file/d/{ID}/view?usp=sharing"],
)
def test_every_form_of_a_drive_link_gives_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    asked = pretend_gdown(monkeypatch, len(CONTENT))
    assert fetch(url, tmp_path / "a", sha256=SHA256).read_bytes() == CONTENT
    assert asked == [ID] and names_in(tmp_path) == ["a"]


def test_a_drive_file_of_the_wrong_size_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gdown(monkeypatch, len(CONTENT))
    assert "instead of 5" in error_of(lambda: fetch(ID, tmp_path / "a", size_bytes=5))
    assert names_in(tmp_path) == []


def test_a_failing_drive_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(**_: Any) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    message = error_of(lambda: fetch(ID, tmp_path / "a"))
    assert f"/file/d/{ID}" in message and str(tmp_path / "a") in message


def test_without_gdown_the_way_to_get_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert "pip install 'nuswide[drive]'" in error_of(lambda: fetch(ID, tmp_path / "a"))


def test_a_drive_folder_is_refused(tmp_path: Path) -> None:
    url = "https://drive.google.com/drive/folders/short"
    assert "not a folder" in error_of(lambda: fetch(url, tmp_path / "a"))


# Unpacking

TAR_MODES = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tgz": "w:gz", "a.tar.bz2": "w:bz2"}
TAR_MODES |= {"a.tar.xz": "w:xz"}
PICTURES = {"./images/a b.jpg": b"one", "images/c.jpg": b"two" * 1000, "train.json": b"{}"}


def tar_member(name: str, content: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o6777
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, members: list[tuple[str, bytes, int]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as given: the constructor cuts it at a NUL
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(info, content)
    return path


def good_archive(path: Path) -> Path:
    if path.suffix == ".zip":
        folder = [("images/", b"", stat.S_IFDIR | 0o777)]
        return make_zip(path, folder + [(n, c, 0o106777) for n, c in PICTURES.items()])
    folder_member = tar_member("./images/", b"", type=tarfile.DIRTYPE)
    members = [folder_member, *(tar_member(n, c) for n, c in PICTURES.items())]
    return make_tar(path, members, TAR_MODES[path.name])


def refused(archive: Path) -> str:
    """The error of an archive that leaves nothing behind, in its folder or above."""
    home = archive.parent
    above = names_in(home.parent)
    message = error_of(lambda: extract(archive, home / "out"))
    assert names_in(home) == [archive.name] and names_in(home.parent) == above
    assert str(archive) in message
    return message


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", [*TAR_MODES, "a.zip"])
def test_a_good_archive_is_unpacked_as_plain_files(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    archive, out = good_archive(home / name), home / "out"
    monkeypatch.setattr(tempfile, "tempdir", str(home / "nowhere"))  # may be another, small disk
    out.mkdir()  # an empty one is welcome
    assert extract(archive, out) == 3
    found = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert {k: p.read_bytes() for k, p in found.items()} == {
        k.removeprefix("./"): v for k, v in PICTURES.items()
    }
    assert not any(p.stat().st_mode & 0o7111 for p in found.values())
    assert out.stat().st_mode == home.stat().st_mode
    assert names_in(home) == sorted([name, "out"])


@pytest.mark.parametrize("name", ["BZhang.jpg", "PKU.jpg"])
def test_a_file_name_like_the_start_of_another_format_is_fine(home: Path, name: str) -> None:
    assert extract(make_tar(home / "a.tar", [tar_member(name)], "w"), home / "out") == 1
    assert names_in(home / "out") == [name]


PATHS = ["/etc/x", "../x", "a/../../x", "C:/x", "C:x", "a\\..\\x", "\\\\host\\x", "a/..", "//x"]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_out_of_the_folder_is_refused(home: Path, name: str) -> None:
    assert repr(name) in refused(make_tar(home / "a.tgz", [tar_member("ok"), tar_member(name)]))
    (home / "a.tgz").unlink()
    assert repr(name) in refused(make_zip(home / "a.zip", [("ok", b"", 0), (name, b"x", 0)]))


def test_a_name_with_a_nul_is_refused(home: Path) -> None:
    evil = tar_member("x", pax_headers={"path": "evil.jpg\0.sh"})
    assert repr("evil.jpg\0.sh") in refused(make_tar(home / "a.tgz", [evil]))
    (home / "a.tgz").unlink()
    make_zip(home / "a.zip", [("evil.jpg_.sh", b"x", 0)])
    content = (home / "a.zip").read_bytes().replace(b"evil.jpg_", b"evil.jpg\0")
    (home / "a.zip").write_bytes(content)
    assert "evil.jpg" in refused(home / "a.zip")


TAR_KINDS: dict[str, dict[str, Any]] = {
    "symbolic link": {"type": tarfile.SYMTYPE, "linkname": "ok"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "ok"},
    "FIFO": {"type": tarfile.FIFOTYPE},
    "character device": {"type": tarfile.CHRTYPE},
    "block device": {"type": tarfile.BLKTYPE},
    "sparse file": {"pax_headers": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}},
}


@pytest.mark.parametrize("kind", TAR_KINDS)
def test_a_tar_takes_only_files_and_folders(home: Path, kind: str) -> None:
    content = b"x" if kind == "sparse file" else b""
    members = [tar_member("ok"), tar_member("evil", content, **TAR_KINDS[kind])]
    message = refused(make_tar(home / "a.tgz", members))
    assert "'evil' is a link" in message if "link" in kind else "'evil' is a device" in message


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_a_zip_takes_only_files_and_folders(home: Path, kind: int) -> None:
    archive = make_zip(home / "a.zip", [("ok", b"", 0), ("evil", b"/etc/passwd", kind | 0o777)])
    assert "'evil' is a" in refused(archive)


def test_a_folder_without_a_name_is_refused(home: Path) -> None:
    members = [tar_member("ok"), tar_member("", b"", type=tarfile.DIRTYPE)]
    assert "'' has no name" in refused(make_tar(home / "a.tgz", members))


def test_a_negative_size_is_refused(home: Path) -> None:
    header = tar_member("evil", size=-512)[0].tobuf(tarfile.GNU_FORMAT)
    (home / "a.tar").write_bytes(header + bytes(2048))
    # Later Pythons see it themselves.
    assert "twice" not in refused(home / "a.tar")


@pytest.mark.parametrize("size", [10, 1000])
def test_a_zip_that_lies_about_a_size_is_refused(home: Path, size: int) -> None:
    content = bytearray(make_zip(home / "a.zip", [("evil", b"x" * 500, 0)]).read_bytes())
    start = content.index(b"PK\1\2") + 24  # the size in the directory
    content[start : start + 4] = size.to_bytes(4, "little")
    (home / "a.zip").write_bytes(content)
    assert "evil" in refused(home / "a.zip")


def test_an_encrypted_zip_is_refused(home: Path) -> None:
    make_zip(home / "a.zip", [("evil", b"x", 0)])
    content = bytearray((home / "a.zip").read_bytes())
    content[6] |= 1  # the flags in the member's own header, and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    (home / "a.zip").write_bytes(content)
    assert "'evil' is encrypted" in refused(home / "a.zip")


@pytest.mark.parametrize(
    "pair",
    [("a", "A"), ("a", "./a"), ("a", "a"), ("a", "a/b"), ("A/b", "a"), ("\u00e4", "a\u0308")],
)
def test_a_name_twice_is_refused(home: Path, pair: tuple[str, str]) -> None:
    assert repr(pair[1]) in refused(make_tar(home / "a.tgz", [tar_member(name) for name in pair]))
    (home / "a.tgz").unlink()
    if pair[0] != pair[1]:  # zipfile warns of writing those
        assert repr(pair[1]) in refused(make_zip(home / "a.zip", [(n, b"", 0) for n in pair]))


def test_tarfiles_own_filter_is_asked_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(info: tarfile.TarInfo, _: str) -> None:
        raise tarfile.SpecialFileError(info)

    monkeypatch.setattr(tarfile, "data_filter", refuse)
    assert "SpecialFileError" in refused(make_tar(home / "a.tgz", [tar_member("fine.jpg")]))


def test_a_bomb_is_refused(home: Path) -> None:
    bomb = bytes(20 * 2**20)
    assert "bomb" in refused(make_zip(home / "a.zip", [("evil", bomb, 0)]))
    (home / "a.zip").unlink()
    for mode in ("w:gz", "w:xz"):
        assert "bomb" in refused(make_tar(home / "a.tar", [tar_member("evil", bomb)], mode))


def test_a_bomb_behind_the_last_member_is_refused(home: Path) -> None:
    tar = make_tar(home / "a.tar", [tar_member("ok")], "w").read_bytes()
    (home / "a.tar").write_bytes(gzip.compress(tar + bytes(20 * 2**20)))
    assert "bomb" in refused(home / "a.tar")


@pytest.mark.parametrize("size", [5 * 2**20, -512])
def test_a_huge_header_is_not_taken_into_memory(home: Path, size: int) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    header = info.tobuf(tarfile.GNU_FORMAT)
    (home / "a.tar").write_bytes(header + bytes(6 * 2**20))
    assert "header in it is too large" in refused(home / "a.tar")


def test_the_limits_on_members_and_bytes_hold(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = good_archive(home / "a.zip")
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 100)
    assert "more than 100 bytes" in refused(archive)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    assert "more than 2 members" in refused(archive)


def test_an_archive_without_room_on_the_disk_is_not_begun(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = good_archive(home / "a.tar.gz")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    assert "make room" in refused(archive)


def test_a_disk_that_fills_up_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = good_archive(home / "a.tar.gz")

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    assert refused(archive).endswith("No space left on device")


@pytest.mark.parametrize("name", [*TAR_MODES, "a.zip"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_a_truncated_archive_is_refused(home: Path, name: str, part: float) -> None:
    content = good_archive(home / name).read_bytes()
    if TAR_MODES.get(name) == "w":
        content = content.rstrip(b"\0")  # what follows is only padding
    (home / name).write_bytes(content[: int(len(content) * part)])
    refused(home / name)


def test_a_tar_cut_between_two_members_is_refused(home: Path) -> None:
    content = make_tar(home / "a.tar", [tar_member("a"), tar_member("b")], "w").read_bytes()
    (home / "a.tar").write_bytes(content[:1024])
    assert "cut short" in refused(home / "a.tar")


def test_a_flipped_bit_is_noticed(home: Path) -> None:
    picture = os.urandom(50_000)
    for path in (
        make_tar(home / "a.tgz", [tar_member("a", picture)]),
        make_zip(home / "a.zip", [("a", picture, 0)]),
    ):
        content = bytearray(path.read_bytes())
        content[25_000] ^= 1
        path.write_bytes(content)
        with pytest.raises(click.ClickException):
            extract(path, home / "out")
        assert names_in(home) == ["a.tgz", "a.zip"]


@pytest.mark.parametrize(
    "content", [b"", b"<html>please log in</html>" * 99, b"PK\3\4", bytes(9999)]
)
def test_what_is_no_archive_is_refused(home: Path, content: bytes) -> None:
    (home / "a.zip").write_bytes(content)
    assert ".tar.gz" in refused(home / "a.zip")


def test_a_filled_folder_is_not_touched(home: Path) -> None:
    archive = good_archive(home / "a.zip")
    (home / "out").mkdir()
    (home / "out" / "mine").write_text("mine")
    assert "already" in error_of(lambda: extract(archive, home / "out"))
    assert names_in(home / "out") == ["mine"]


# Both


def test_download_fetches_once_and_unpacks(server: Server, home: Path) -> None:
    server.content = good_archive(home / "a.tar.gz").read_bytes()
    sha256 = hashlib.sha256(server.content).hexdigest()
    (home / "a.tar.gz").unlink()
    assert download(server.url, home / "photos", sha256=sha256) == 3
    assert names_in(home) == ["photos", "pictures.tar.gz"]
    assert "already" in error_of(lambda: download(server.url, home / "photos"))
    assert download(server.url, home / "again", sha256=sha256) == 3
    (home / "pictures.tar.gz").unlink()
    assert "already" in error_of(lambda: download(server.url, home / "photos"))
    assert len(server.asked) == 1


def test_the_archive_may_have_the_folders_name(server: Server, home: Path) -> None:
    server.content = good_archive(home / "a.zip").read_bytes()
    assert download(server.url, home / "pictures.tar.gz") == 3
    assert (home / "pictures.tar.gz" / "train.json").is_file()


def test_the_articles_archive_has_a_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend_gdown(monkeypatch, len(CONTENT))
    assert ID in error_of(lambda: download("article", home / "photos"))  # it is no archive
    assert asked == [ID] and names_in(home) == [ID]
