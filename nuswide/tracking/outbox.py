"""Metrics and pictures on their way to the tracking server, on disk until it has them.

Owns the spool's files and the thread that empties them, so that training never waits for the
server, and an outage of any length loses nothing. Only what a checkpoint covers is sent: what comes
after it is made again when the run is resumed, and must not be there twice.

    spool = Spool(folder, run_id)
    spool.add_metrics([Metric("train/loss", 0.7, now_ms, step=0)])
    spool.commit(spool.mark())
    spool.close(patience_s=60)
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

_LINES, _SENT, _FILES = "spool.jsonl", "sent", "outbox"
_BATCH = 1000  # the most metrics that one call takes
_LONGEST_WAIT_S = 10.0

Entry = dict[str, Any]


class Outbox:
    """A file of entries, of which those before `sent` have arrived and those before the commit may.

    What the server may have already, after a resume or a call that failed, is asked for first.
    """

    def __init__(self, folder: Path, run_id: str, *, keep_bytes: int | None = None) -> None:
        """Open or begin the spool in a folder. keep_bytes: cut off what comes after; None: keep."""
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
        self._wake, self._given_up = threading.Event(), threading.Event()
        self._ending = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _resumed(self) -> bool:
        return bool(self._client.get_run(self._run_id).data.metrics)

    @property
    def is_empty(self) -> bool:
        """Whether the server has all that it may have."""
        return self._sent >= self._committed and not self._files()

    def add_metrics(self, metrics: Iterable[Metric]) -> None:
        """Take metrics."""
        for m in metrics:
            self._add({"key": m.key, "value": m.value, "time_ms": m.timestamp, "step": m.step})

    def add_picture(self, png: bytes, key: str, *, step: int) -> None:
        """Take a picture for the step slider of MLflow's page."""
        name = f"{key.replace('/', '_')}-{step}.png"
        (self._folder / name).write_bytes(png)
        self._add({"picture": name, "key": key, "time_ms": _now_ms(), "step": step})

    def _add(self, entry: Entry) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")

    def mark(self) -> int:
        """Put everything on disk; gives where the spool ends now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def commit(self, mark: int) -> None:
        """Let everything before a mark be sent."""
        self._committed = max(self._committed, mark)
        self._wake.set()

    def send_file(self, path: Path, folder: str) -> None:
        """Let a file, as it is now, be sent as an artifact once all that was committed is."""
        waiting = self._folder / _FILES / folder / path.name
        waiting.parent.mkdir(parents=True, exist_ok=True)
        waiting.unlink(missing_ok=True)
        os.link(path, waiting)
        self._wake.set()

    def close(self, patience_s: float) -> bool:
        """Wait until everything committed has arrived, at most so long; gives whether it has."""
        self._ending = True
        self._wake.set()
        self._thread.join(patience_s)
        self._given_up.set()
        self._file.close()
        return self.is_empty

    def _work(self) -> None:
        wait_s = 0.5
        while not (self._given_up.is_set() or self._ending and self.is_empty):
            if self.is_empty:
                self._wake.wait()
                self._wake.clear()
                continue
            try:
                self._send_some()
                wait_s = 0.5
            except Exception as error:  # the server may come back from anything
                self._error, self._present = error, None
                self._given_up.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _send_some(self) -> None:
        """Send the next batch, picture or file, and note that it has arrived."""
        if self._sent >= self._committed:
            path = self._files()[0]
            folder = path.parent.relative_to(self._folder / _FILES)
            self._client.log_artifact(self._run_id, str(path), str(folder))
            path.unlink()
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

    def _files(self) -> list[Path]:
        return [path for path in (self._folder / _FILES).rglob("*") if path.is_file()]

    def _known(self, key: str) -> set[int]:
        assert self._present is not None
        return self._present.get(key, set())

    def _read_some(self) -> tuple[list[Entry], int]:
        """The entries after `sent` that go together: many metrics or one picture."""
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
        """Ask the server which steps it has of all metrics."""
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


def _now_ms() -> int:
    return round(time.time() * 1000)


def _read_number(path: Path) -> int:
    return int(path.read_text()) if path.exists() else 0
