"""The storage of a study: SQLite on one machine, PostgreSQL for several.

Owns the connection, the study's lock and the heartbeat. Knows nothing of trials.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from nuswide.core import files

_GRACE = 4  # heartbeats that a worker may miss before another one takes its trial
_PATIENCE_S = 60


class StudyStorage:
    """The storage of one study."""

    def __init__(self, url: str, *, name: str, heartbeat_s: int) -> None:
        """Connect. Raises click.ClickException if the URL is wrong or the server unavailable."""
        self.url, self.name, self._heartbeat_s = _read_url(url), name, heartbeat_s
        if self.is_local:
            self._file = Path(str(self.url.database))
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return
        try:
            self._engine = sqlalchemy.create_engine(self.url, **_options(self.url))
            self._engine.connect().close()
        except ImportError as error:
            raise click.ClickException(
                f"PostgreSQL needs {error.name}; pip install 'nuswide[sweep]' brings it"
            ) from error
        except OperationalError as error:
            reason = " ".join(str(error.orig).split())
            raise click.ClickException(f"{self} does not answer: {reason}") from error

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Hold the study's lock, which only one worker has at a time; it ends with its process."""
        if self.is_local:
            with files.exclusive_lock(Path(f"{self._file}.lock"), wait=True):
                yield
            return
        digest = hashlib.sha256(f"nuswide sweep {self.name}".encode()).digest()
        key = int.from_bytes(digest[:8], signed=True)
        with self._engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
            yield

    def open_study(self, pruner: optuna.pruners.BasePruner) -> optuna.Study:
        """Load the study or create it; the caller holds the lock, as tables are created."""
        self._storage = _HeartbeatStorage(
            self.url.render_as_string(hide_password=False),
            engine_kwargs=_options(self.url),
            heartbeat_interval=self._heartbeat_s,
            grace_period=_GRACE * self._heartbeat_s,
        )
        return optuna.create_study(
            storage=self._storage, study_name=self.name, direction="maximize", pruner=pruner,
            load_if_exists=True,
        )  # fmt: skip

    def expect_heartbeat(self) -> None:
        """Make wait_for_heartbeat wait for the next heartbeat."""
        self._storage.has_beaten.clear()

    def wait_for_heartbeat(self) -> None:
        """Wait for the running trial's first heartbeat: without one, its loss goes unnoticed."""
        if not self._storage.has_beaten.wait(_PATIENCE_S):
            raise click.ClickException(f"{self} takes no heartbeat")


class _HeartbeatStorage(RDBStorage):
    """Optuna's storage, whose heartbeat survives a short outage of the server."""

    def __init__(self, url: str, **options: object) -> None:
        self.has_beaten = threading.Event()
        super().__init__(url, **options)  # type: ignore[arg-type]

    def record_heartbeat(self, trial_id: int) -> None:
        try:
            super().record_heartbeat(trial_id)
        except optuna.exceptions.StorageInternalError:
            return
        self.has_beaten.set()


def _read_url(text: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError:
        url = URL.create("")
    if url.get_backend_name() in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    raise click.UsageError(
        f"storage {text.partition('//')[0]}//... is not supported; give sqlite:///FILE or "
        "postgresql://USER@HOST/DATABASE"
    )


def _options(url: URL) -> dict[str, object]:
    """Return timeouts for a file that others write, or connections that notice a restart."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _PATIENCE_S}}
    alive = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10}
    return {"connect_args": alive, "pool_pre_ping": True}
