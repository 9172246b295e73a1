"""An MLflow store that a benchmark has to itself."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow


@contextmanager
def own_store() -> Iterator[Path]:
    """A folder with a store of its own in it, gone afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        mlflow.create_experiment("here", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("here")
        yield folder
