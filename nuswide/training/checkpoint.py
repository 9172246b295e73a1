"""Checkpoints: saved atomically, in a thread beside training, and loaded without running code.

Owns their format and their writing. Never decides when.
"""

import errno
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import click
import torch
from torch import Tensor

from nuswide.core.files import atomic_write

LAST = "last.pt"
State = dict[str, Any]


class Diverged(click.ClickException):
    """Training diverged: the loss or the weights are no longer finite."""


def save(path: Path, state: State) -> None:
    """Replace a checkpoint atomically.

    Raises click.ClickException if it cannot be written; the old file stays.
    """
    try:
        with atomic_write(path, "wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        raise click.ClickException(_cannot_save(path, error)) from error


def _cannot_save(path: Path, error: OSError | RuntimeError) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    kept = f"{path} is unchanged" if path.exists() else "there is none yet"
    if isinstance(cause, OSError) and cause.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot save the checkpoint ({cause.strerror}), {kept}; give checkpoints=DIR"
    return (
        f"no room for the checkpoint on the disk of {path.parent}, {kept}; free some there (old "
        "runs' folders beside it, or caches: `nuswide cache`) or give checkpoints=DIR, and resume"
    )


def load(path: Path) -> State:
    """Load a state onto the CPU; nothing in the file is executed.

    Raises click.ClickException if the file is no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types for other files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.ClickException(f"cannot read the checkpoint {path} ({reason})") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise click.ClickException(f"{path} is not a checkpoint of nuswide")
    return state


def snapshot(value: Any) -> Any:
    """Return a copy of a state on the CPU, which is written while training continues."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item) for item in value)
    return value


class CheckpointWriter:
    """Saves states in a thread, one at a time; a newer state replaces one that still waits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.Queue[tuple[State, Callable[[], None]] | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self.check()
        elif self._error is not None:  # the error that ends training is raised anyway
            click.echo(f"the last checkpoint was not saved: {self._error}", err=True)

    def save(self, state: State, then: Callable[[], None]) -> None:
        """Queue a snapshot; `then` is called once it is on disk. Raises an earlier save's error."""
        self.check()
        with suppress(queue.Empty):
            self._queue.get_nowait()  # frees the memory of an older one
        self._queue.put((state, then))

    def check(self) -> None:
        """Raise the thread's error, if it had one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            state, then = item
            try:
                _require_finite(state)
                save(self.path, state)
                then()
            except Exception as error:
                self._error = error


def _require_finite(state: State) -> None:
    bad = [k for k, v in state["model"].items() if not torch.isfinite(v).all()]
    if bad:
        raise Diverged(
            f"the weights are no longer finite after step {state['progress']['steps']} "
            f"({bad[0]} first) and were not saved; resume from the last checkpoint, or start again "
            "with a lower lr"
        )
