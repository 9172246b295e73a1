"""Pictures from elsewhere: an archive fetched, checked and unpacked.

Owns resuming, size and checksum. Never runs or unpickles what came, and never shows a URL's
password or query.

    n_files = download("article", Path("photos"))
"""

import glob
import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import requests
import urllib3
from tqdm import tqdm

from nuswide.data.archives import extract, refuse_filled

PAUSES_S = (1, 2, 4, 8, 16)  # before each further try
TIMEOUT_S = 30
CHUNK_BYTES = 2**16


class _BrokenOff(Exception):
    """A try that ended early, for a reason that may pass."""


@dataclass(frozen=True)
class _Job:
    """A file to fetch, and what is known of it."""

    url: str
    shown: str  # the URL without its secrets
    out: Path
    sha256: str | None
    size_bytes: int | None

    @property
    def part(self) -> Path:
        return self.out.with_name(f"{self.out.name}.part")

    @property
    def state(self) -> Path:
        return self.out.with_name(f"{self.out.name}.part.json")

    def drop(self) -> None:
        """Remove what was fetched so far."""
        drive = f"{glob.escape(self.out.name)}.drive????????.part"  # as gdown names them
        for path in (self.part, self.state, *self.out.parent.glob(drive)):
            path.unlink(missing_ok=True)


def fetch(url: str, out: Path, *, sha256: str | None = None, size_bytes: int | None = None) -> Path:
    """Fetch a file over http or https or from Google Drive; gives `out`.

    Continues what an earlier call left in `out`.part. A file that is there already is kept, and
    only checked. Raises click.ClickException, a single line, for whatever goes wrong.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise click.ClickException(f"sha256 {sha256!r:.80} is not 64 hex digits; mend it")
    drive_id = _drive_id(url)
    shown = f"Google Drive's file {drive_id}" if drive_id else _without_secrets(url)
    job = _Job(url, shown, out, sha256, size_bytes)
    try:
        if out.exists():
            if wrong := _mismatch(out, job):
                raise click.ClickException(f"{out} is there already and {wrong}; move it away")
            return out
        out.parent.mkdir(parents=True, exist_ok=True)
        if drive_id:
            _fetch_drive(job, drive_id)
        else:
            _fetch_http(job)
        if wrong := _mismatch(job.part, job):
            job.drop()
            raise click.ClickException(f"{shown} {wrong}; removed it, the next try starts afresh")
        os.replace(job.part, out)
        job.drop()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise click.ClickException(f"cannot write {out} or {job.part.name}: {reason}") from error
    return out


def _drive_id(url: str) -> str | None:
    if re.fullmatch("[-_A-Za-z0-9]{25,}", url):
        return url
    if not re.match(r"https?://(drive|docs|drive\.usercontent)\.google\.com/", url):
        return None
    if not (found := re.search("(?:/d/|[?&]id=)([-_A-Za-z0-9]{25,})", url)):
        raise click.ClickException("the Google Drive link names no file; share a file, no folder")
    return found[1]


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:  # and not shown, since nobody knows where the secret is in it
        raise click.ClickException(
            "only http:// and https:// addresses, Google Drive links and ids, "
            f"and these names can be fetched: {', '.join(ARCHIVES)}"
        )
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _mismatch(path: Path, job: _Job) -> str:
    """What is wrong with a finished file, or nothing."""
    if not path.is_file():
        return "is not a file"
    size = path.stat().st_size
    if job.size_bytes not in (None, size):
        return f"has {size} bytes instead of {job.size_bytes}"
    if job.sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != job.sha256.lower():
            return f"has the sha256 {found} instead of {job.sha256.lower()}"
    return ""


def _guard(job: _Job, done: int, total: int | None) -> None:
    """Stop a file that is not the expected one, or that the disk has no room for."""
    expected = total if job.size_bytes is None else job.size_bytes
    if total not in (None, expected):
        problem = f"is {total} bytes long instead of {expected}"
    elif expected is not None and done > expected:
        problem = f"sends more than its {expected} bytes"
    else:
        free = shutil.disk_usage(job.out.parent).free
        if total is not None and total - done > free:
            raise click.ClickException(
                f"{job.shown} needs {total - done} bytes and {job.out.parent} has {free}; make room"
            )
        return
    job.drop()
    raise click.ClickException(f"{job.shown} {problem}; removed it, the next try starts afresh")


def _progress(job: _Job, total: int | None = None, initial: int = 0) -> "tqdm[Any]":
    return tqdm(
        desc=job.out.name, total=total, initial=initial, unit="B", unit_scale=True, disable=None
    )


def _fetch_drive(job: _Job, drive_id: str) -> None:
    try:
        import gdown
    except ImportError:
        raise click.ClickException(
            "Google Drive needs the package gdown: pip install 'nuswide[drive]'"
        ) from None
    whole = job.out.with_name(f"{job.out.name}.drive")  # gdown puts its own parts beside it
    with _progress(job) as bar:

        def advance(done: int, total: int | None) -> None:
            _guard(job, done, total)
            bar.total = total
            bar.update(done - bar.n)

        try:
            gdown.download(
                id=drive_id, output=str(whole), quiet=True, resume=True, use_cookies=False,
                progress=advance, timeout=TIMEOUT_S, retries=len(PAUSES_S),
            )  # fmt: skip
        except click.ClickException:
            raise
        except Exception as error:  # its own, requests', and KeyErrors on odd answers
            raise click.ClickException(
                f"{job.shown} did not come ({type(error).__name__}); run the command again to "
                "continue, or, if it is private or asked for too often today, fetch it with a "
                f"browser from https://drive.google.com/file/d/{drive_id} and save it as {job.out}"
            ) from error
    os.replace(whole, job.part)


def _fetch_http(job: _Job) -> None:
    for attempt, pause in enumerate((*PAUSES_S, None)):
        try:
            return _receive(job)
        except (_BrokenOff, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _reason(error)
            if attempt == 0 and isinstance(error, requests.RequestException):
                raise click.ClickException(
                    f"cannot reach {job.shown}: {reason}; check the address and the network"
                ) from None
        if pause is not None:
            time.sleep(pause)
    raise click.ClickException(
        f"{job.shown} broke off {len(PAUSES_S) + 1} times, last with {reason}; "
        "run the command again to continue"
    )


def _reason(error: BaseException) -> str:
    """The innermost cause; what wraps it quotes the URL."""
    while error.__context__ is not None:
        error = error.__context__
    if isinstance(error, _BrokenOff):
        return str(error)
    return getattr(error, "strerror", None) or type(error).__name__


def _receive(job: _Job) -> None:
    """Ask for the file or for the rest of it, and write what comes."""
    offset, validator = _remembered(job)
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    with requests.get(job.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        start, total = _place(job, response, offset, validator)
        if response.status_code == 416:
            return  # all of it was there
        _guard(job, start, total)
        if start == 0:
            job.drop()  # first, so that the new state never stands beside an old part
            job.state.write_text(json.dumps([job.shown, _validator(response)]), encoding="utf-8")
        done = start
        with job.part.open("ab") as file, _progress(job, total, start) as bar:
            # As sent: a .tar.gz that a server calls "Content-Encoding: gzip" must stay packed.
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                done += len(chunk)
                _guard(job, done, total)
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and done < total:
        raise _BrokenOff(f"{done} of {total} bytes")


def _remembered(job: _Job) -> tuple[int, str | None]:
    """How much of the file is there, and the ETag or date that it had."""
    try:
        shown, validator = json.loads(job.state.read_text(encoding="utf-8"))
        offset = job.part.stat().st_size
    except (OSError, ValueError, TypeError):
        return 0, None
    # Without a validator only a checksum could tell a patchwork of two files.
    is_usable = shown == job.shown and (validator or job.sha256)
    return (offset, validator) if is_usable else (0, None)


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _place(
    job: _Job, response: requests.Response, offset: int, validator: str | None
) -> tuple[int, int | None]:
    """Where in the file the answer's bytes begin, and the file's whole size if it is told."""
    status = response.status_code
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if status in (408, 429) or status >= 500:
        raise _BrokenOff(f"HTTP {status}")
    if status not in (206, 416) or (status == 416 and not offset):
        raise click.ClickException(f"{job.shown} answers HTTP {status}; check the address")
    content_range = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]{1,18}|\*)", content_range)
    if found and status == 416 and found[2] == str(offset):
        return offset, offset
    # Some servers honour Range and overlook If-Range.
    is_same = validator is None or _validator(response) in (None, validator)
    if found and status == 206 and found[1] == str(offset) and is_same:
        return offset, None if found[2] == "*" else int(found[2])
    job.drop()
    raise _BrokenOff("a range that does not fit what is here")


def download(
    url: str, out: Path, *, sha256: str | None = None, size_bytes: int | None = None
) -> int:
    """Fetch an archive, keep it beside `out` and unpack it into `out`; the number of files.

    url: an address, a Google Drive link or id, or a name out of ARCHIVES. sha256 and size_bytes are
    the archive's. Raises click.ClickException, a single line, for whatever goes wrong.
    """
    refuse_filled(out)  # before the hours of fetching, too
    url = ARCHIVES.get(url, url)
    name = _drive_id(url) or re.sub(r"[^\w.-]", "_", _without_secrets(url).rpartition("/")[2])
    name = name.strip(".") or "archive"
    if name == out.absolute().name:
        name += ".archive"
    fetched = fetch(url, out.absolute().with_name(name), sha256=sha256, size_bytes=size_bytes)
    return extract(fetched, out)


# The pictures of the article in README.md; nobody has published a checksum of them.
ARCHIVES = {"article": "https://drive.google.com/uc?id=0B7IzDz-4yH_HMFdiSE44R1lselE"}
