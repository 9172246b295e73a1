"""Download of image archives: fetch, verify and unpack.

Owns resuming, size and checksum. Never runs or unpickles the content, and never shows a URL's
password or query.
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

PAUSES_S = (1, 2, 4, 8, 16)  # before each retry
TIMEOUT_S = 30
CHUNK_BYTES = 2**16


class _Interrupted(Exception):
    """An attempt that ended early, for a reason that may be temporary."""


@dataclass(frozen=True)
class _Transfer:
    """A file to fetch, and what is known about it."""

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
        """Remove the partial file and its state."""
        drive = f"{glob.escape(self.out.name)}.drive????????.part"  # as gdown names them
        for path in (self.part, self.state, *self.out.parent.glob(drive)):
            path.unlink(missing_ok=True)


def fetch(url: str, out: Path, *, sha256: str | None = None, size_bytes: int | None = None) -> Path:
    """Fetch a file over http or https or from Google Drive; return `out`.

    Continues from `out`.part of an earlier call. An existing file is kept and only verified. Raises
    click.ClickException, a single line, on any failure.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise click.ClickException(f"sha256 {sha256!r:.80} is not 64 hex digits; correct it")
    drive_id = _drive_id(url)
    shown = f"Google Drive's file {drive_id}" if drive_id else _without_secrets(url)
    job = _Transfer(url, shown, out, sha256, size_bytes)
    try:
        if out.exists():
            if wrong := _mismatch(out, job):
                raise click.ClickException(f"{out} exists already and {wrong}; move it away")
            return out
        out.parent.mkdir(parents=True, exist_ok=True)
        if drive_id:
            _fetch_drive(job, drive_id)
        else:
            _fetch_http(job)
        if wrong := _mismatch(job.part, job):
            job.drop()
            raise click.ClickException(f"{shown} {wrong}; it was removed, run the command again")
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
        raise click.ClickException(
            "the Google Drive link names no file; share a file, not a folder"
        )
    return found[1]


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good:  # not shown, because it may contain a secret anywhere
        raise click.ClickException(
            "only http:// and https:// addresses, Google Drive links and ids, "
            f"and these names can be fetched: {', '.join(ARCHIVES)}"
        )
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _mismatch(path: Path, job: _Transfer) -> str:
    """Return how a complete file differs from what is expected, or an empty text."""
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


def _guard(job: _Transfer, done: int, total: int | None) -> None:
    """Abort if the file is not the expected one, or if the disk is too small for it."""
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
    raise click.ClickException(f"{job.shown} {problem}; it was removed, run the command again")


def _progress(job: _Transfer, total: int | None = None, initial: int = 0) -> "tqdm[Any]":
    return tqdm(
        desc=job.out.name, total=total, initial=initial, unit="B", unit_scale=True, disable=None
    )


def _fetch_drive(job: _Transfer, drive_id: str) -> None:
    try:
        import gdown
    except ImportError:
        raise click.ClickException(
            "Google Drive needs the package gdown: pip install 'nuswide[drive]'"
        ) from None
    whole = job.out.with_name(
        f"{job.out.name}.drive"
    )  # gdown writes its own partial files beside it
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
        except Exception as error:  # its own, requests', and KeyErrors on unexpected answers
            raise click.ClickException(
                f"{job.shown} was not received ({type(error).__name__}); run the command again to "
                "continue, or, if it is private or its daily quota is exceeded, fetch it with a "
                f"browser from https://drive.google.com/file/d/{drive_id} and save it as {job.out}"
            ) from error
    os.replace(whole, job.part)


def _fetch_http(job: _Transfer) -> None:
    for attempt, pause in enumerate((*PAUSES_S, None)):
        try:
            return _receive(job)
        except (_Interrupted, requests.RequestException, urllib3.exceptions.HTTPError) as error:
            reason = _reason(error)
            if attempt == 0 and isinstance(error, requests.RequestException):
                raise click.ClickException(
                    f"cannot reach {job.shown}: {reason}; check the address and the network"
                ) from None
        if pause is not None:
            time.sleep(pause)
    raise click.ClickException(
        f"{job.shown} was interrupted {len(PAUSES_S) + 1} times, last by {reason}; "
        "run the command again to continue"
    )


def _reason(error: BaseException) -> str:
    """Return the innermost cause; the exceptions around it quote the URL."""
    while error.__context__ is not None:
        error = error.__context__
    if isinstance(error, _Interrupted):
        return str(error)
    return getattr(error, "strerror", None) or type(error).__name__


def _receive(job: _Transfer) -> None:
    """Request the file, or the rest of it, and append what arrives."""
    offset, validator = _remembered(job)
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    with requests.get(job.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        start, total = _start_of(job, response, offset, validator)
        if response.status_code == 416:
            return  # it was complete already
        _guard(job, start, total)
        if start == 0:
            job.drop()  # first, so that the new state never belongs to an old partial file
            job.state.write_text(json.dumps([job.shown, _validator(response)]), encoding="utf-8")
        done = start
        with job.part.open("ab") as file, _progress(job, total, start) as bar:
            # Raw: a .tar.gz sent with "Content-Encoding: gzip" must stay compressed.
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                done += len(chunk)
                _guard(job, done, total)
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and done < total:
        raise _Interrupted(f"{done} of {total} bytes")


def _remembered(job: _Transfer) -> tuple[int, str | None]:
    """Return the size of the partial file, and its ETag or date."""
    try:
        shown, validator = json.loads(job.state.read_text(encoding="utf-8"))
        offset = job.part.stat().st_size
    except (OSError, ValueError, TypeError):
        return 0, None
    # Without a validator only a checksum could detect a mixture of two files.
    is_usable = shown == job.shown and (validator or job.sha256)
    return (offset, validator) if is_usable else (0, None)


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _start_of(
    job: _Transfer, response: requests.Response, offset: int, validator: str | None
) -> tuple[int, int | None]:
    """Return the offset of the answer's bytes, and the size of the whole file if known."""
    status = response.status_code
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if status in (408, 429) or status >= 500:
        raise _Interrupted(f"HTTP {status}")
    if status not in (206, 416) or (status == 416 and not offset):
        raise click.ClickException(f"{job.shown} answers HTTP {status}; check the address")
    content_range = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]{1,18}|\*)", content_range)
    if found and status == 416 and found[2] == str(offset):
        return offset, offset
    # Some servers honour Range and ignore If-Range.
    is_same = validator is None or _validator(response) in (None, validator)
    if found and status == 206 and found[1] == str(offset) and is_same:
        return offset, None if found[2] == "*" else int(found[2])
    job.drop()
    raise _Interrupted("a range that does not match the partial file")


def download(
    url: str, out: Path, *, sha256: str | None = None, size_bytes: int | None = None
) -> int:
    """Fetch an archive, keep it beside `out` and unpack it into `out`; return the number of files.

    url: an address, a Google Drive link or ID, or a name of ARCHIVES. sha256 and size_bytes are the
    archive's. Raises click.ClickException, a single line, on any failure.
    """
    refuse_filled(out)  # before hours of fetching, too
    url = ARCHIVES.get(url, url)
    name = _drive_id(url) or re.sub(r"[^\w.-]", "_", _without_secrets(url).rpartition("/")[2])
    name = name.strip(".") or "archive"
    if name == out.absolute().name:
        name += ".archive"
    fetched = fetch(url, out.absolute().with_name(name), sha256=sha256, size_bytes=size_bytes)
    return extract(fetched, out)


# The images of the article in README.md; no checksum of them is published.
ARCHIVES = {"article": "https://drive.google.com/uc?id=0B7IzDz-4yH_HMFdiSE44R1lselE"}
