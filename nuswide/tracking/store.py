"""The tracking store: its tables are created once, however many processes start at once.

Owns the first access to the store. MLflow creates the tables of a database without a lock.
"""

import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

import click
import mlflow
from mlflow.exceptions import MlflowException

from nuswide.core import files

_SQLITE = "sqlite:///"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_PATIENCE_S = 10.0  # ... while a program without our lock, such as `mlflow ui`, creates the tables
_PAUSE_S = 1.0


def open_store() -> None:
    """Open the tracking store if it is a database, and create its tables if it has none.

    Raises MlflowException or click.ClickException if it cannot be opened.
    """
    uri = mlflow.get_tracking_uri()
    if not uri.startswith(_DATABASES):
        return
    give_up = time.monotonic() + _PATIENCE_S
    with _lock(uri):
        while True:
            try:
                mlflow.MlflowClient().search_experiments(max_results=1)
                return
            except Exception as error:  # MLflow's, or the database's own
                if time.monotonic() > give_up:
                    _fail(error)
                time.sleep(_PAUSE_S)


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, MlflowException):
        raise error
    raise cannot_open(error) from error


def cannot_open(error: Exception) -> click.ClickException:
    """Return a database's own error in one line."""
    return click.ClickException(
        f"cannot open the tracking store ({str(error).splitlines()[0]}); check MLFLOW_TRACKING_URI"
    )


def _lock(uri: str) -> AbstractContextManager[None]:
    """Return the lock beside a database file; none for other databases, or if it is read only."""
    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    if not uri.startswith(_SQLITE) or not os.access(path.parent, os.W_OK):
        return nullcontext()
    return files.exclusive_lock(path.with_name(f"{path.name}.lock"), wait=True)
