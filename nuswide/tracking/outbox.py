"""Metrics and images on disk until the tracking server has accepted them.

Owns the outbox's files and the thread that sends them, so that training never waits for the server,
and an outage of any length loses nothing. Only what a checkpoint covers is sent: the steps after it
are repeated when the run is resumed, and must not be recorded twice.
"""

import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric
from PIL import Image

from nuswide.core.files import atomic_write

_LINES, _SENT, _FILES, _SENDING = "spool.jsonl", "sent", "outbox", "sending"
_BATCH = 1000  # the most metrics that one call takes
_LONGEST_WAIT_S = 10.0

Entry = dict[str, Any]


class Outbox:
    """A file of entries: those before `sent` are recorded, those before the commit may be sent.

    After a resume or a failed call, the server may have some of them already, and is asked first.
    """

    def __init__(self, folder: Path, run_id: str, *, keep_bytes: int | None = None) -> None:
        """Open or create the outbox in a folder. keep_bytes: where to truncate it, if not None."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._run_id = folder, run_id
        self._client = mlflow.MlflowClient()
        self._file = (folder / _LINES).open("ab")
        if keep_bytes is not None and keep_bytes < self._file.tell():
            self._file.truncate(keep_bytes)
            self._file.seek(0, os.SEEK_END)
        self._sent = min(_read_number(folder / _SENT), self._file.tell())
        self._committed = self._sent
        self._present: dict[str, set[int]] | None = None if self._resumed() else {}
        self._wake, self._is_cancelled = threading.Event(), threading.Event()
        self._ending = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _resumed(self) -> bool:
        return bool(self._client.get_run(self._run_id).data.metrics)

    @property
    def is_empty(self) -> bool:
        """Whether all that was committed has been recorded."""
        return self._sent >= self._committed and not self._files()

    def add_metrics(self, metrics: Iterable[Metric]) -> None:
        """Add metrics."""
        for m in metrics:
            self._add({"key": m.key, "value": m.value, "time_ms": m.timestamp, "step": m.step})

    def add_picture(self, png: bytes, key: str, *, step: int) -> None:
        """Add a PNG image for the step slider of MLflow's page."""
        name = f"{key.replace('/', '_')}-{step}.png"
        with atomic_write(self._folder / name, "wb") as file:
            file.write(png)
        self._add({"picture": name, "key": key, "time_ms": _now_ms(), "step": step})

    def _add(self, entry: Entry) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")

    def mark(self) -> int:
        """Write all entries to disk; return the position of their end."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def commit(self, mark: int) -> None:
        """Allow everything before a mark to be sent."""
        self._committed = max(self._committed, mark)
        self._wake.set()

    def send_file(self, path: Path, folder: str) -> None:
        """Send a file, as it is now, as an artifact after everything committed.

        It replaces one of the same name that still waits.
        """
        waiting = self._folder / _FILES / folder / path.name
        waiting.parent.mkdir(parents=True, exist_ok=True)
        link = self._folder / f"{path.name}.link"
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(waiting)
        link.unlink(missing_ok=True)  # it stays if both are links to one file
        self._wake.set()

    def close(self, timeout_s: float) -> bool:
        """Wait until everything committed is recorded or time is out; return whether it is."""
        self._ending = True
        self._wake.set()
        self._thread.join(timeout_s)
        self._is_cancelled.set()
        self._file.close()
        return self.is_empty

    def _work(self) -> None:
        wait_s = 0.5
        while not (self._is_cancelled.is_set() or self._ending and self.is_empty):
            if self.is_empty:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._send_some()
                wait_s = 0.5
            except Exception as error:  # any error may be the server's, and pass
                self._error, self._present = error, None
                self._is_cancelled.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _send_some(self) -> None:
        """Send the next batch of metrics, image or file, and save that it is recorded."""
        if self._sent >= self._committed:
            self._send_next_file()
            return
        entries, end = self._read_some()
        if self._present is None:
            self._present = self._ask({e["key"] for e in entries if "value" in e})
        if "picture" in entries[0]:
            self._send_picture(entries[0])
        else:
            new = [e for e in entries if e["step"] not in self._known(e["key"])]
            self._client.log_batch(
                self._run_id,
                [Metric(e["key"], e["value"], e["time_ms"], e["step"]) for e in new],
            )
        self._sent = end
        with atomic_write(self._folder / _SENT) as file:
            file.write(str(end))

    def _send_next_file(self) -> None:
        """Send a file from a folder of its own, as send_file may replace one that waits."""
        waiting, sending = self._folder / _FILES, self._folder / _SENDING
        for path in _files_in(waiting):
            target = sending / path.relative_to(waiting)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)  # also an older one that could not be sent
        path = _files_in(sending)[0]
        folder = path.parent.relative_to(sending)
        self._client.log_artifact(self._run_id, str(path), str(folder))
        path.unlink()

    def _files(self) -> list[Path]:
        return [f for name in (_FILES, _SENDING) for f in _files_in(self._folder / name)]

    def _known(self, key: str) -> set[int]:
        assert self._present is not None
        return self._present.get(key, set())

    def _read_some(self) -> tuple[list[Entry], int]:
        """Return the next entries to send together, metrics or one image, and their end."""
        entries: list[Entry] = []
        with (self._folder / _LINES).open("rb") as file:
            file.seek(self._sent)
            end = self._sent
            while end < self._committed and len(entries) < _BATCH:
                entry = json.loads(file.readline())
                if "picture" in entry and entries:
                    break
                entries.append(entry)
                end = file.tell()
                if "picture" in entry:
                    break
        return entries, end

    def _ask(self, keys: set[str]) -> dict[str, set[int]]:
        """Return the steps that the server has of each metric."""
        keys |= set(self._client.get_run(self._run_id).data.metrics)
        history = self._client.get_metric_history
        return {key: {m.step for m in history(self._run_id, key)} for key in keys}

    def _send_picture(self, entry: Entry) -> None:
        path = self._folder / entry["picture"]
        name = f"{entry['key'].replace('/', '~')}+step+{entry['step']}+"
        there = self._client.list_artifacts(self._run_id, "images")
        if path.exists() and not any(Path(f.path).name.startswith(name) for f in there):
            with Image.open(path) as image:
                self._client.log_image(
                    self._run_id, image, key=entry["key"], step=entry["step"],
                    timestamp=entry["time_ms"],
                )  # fmt: skip
        path.unlink(missing_ok=True)


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _now_ms() -> int:
    return round(time.time() * 1000)


def _read_number(path: Path) -> int:
    """Read a number; 0 if there is none, so that the server is asked for what it has."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0
