"""MLflow's errors, and those of its database, as errors of the command line.

Owns their conversion.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click
import mlflow
from mlflow.exceptions import MlflowException

from nuswide.tracking.store import cannot_open

_FILE_STORE = (
    "MLflow does not open file stores, such as an old ./mlruns, any more; set "
    "MLFLOW_TRACKING_URI=sqlite:///mlflow.db, and to keep the old runs first run `mlflow "
    "migrate-filestore --source mlruns --target sqlite:///mlflow.db`; leave ./mlruns where it is"
)


@contextmanager
def mlflow_errors_in_one_line() -> Iterator[None]:
    """Turn exceptions of MLflow and its database into click.ClickException, by their first line."""
    try:
        yield
    except MlflowException as error:
        if _is_refused_file_store(mlflow.get_tracking_uri()):
            raise click.ClickException(_FILE_STORE) from error
        raise click.ClickException(f"MLflow: {str(error).splitlines()[0]}") from error
    except Exception as error:
        # By name, as a client of a tracking server need not have it.
        if not type(error).__module__.startswith("sqlalchemy."):
            raise
        raise cannot_open(error) from error


def _is_refused_file_store(uri: str) -> bool:
    """Whether the tracking store is a folder, as MLflow's default is where an old ./mlruns is."""
    is_allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    is_folder = "://" not in uri and not uri.startswith(("databricks", "uc"))
    return (uri.startswith("file:") or is_folder) and not is_allowed
