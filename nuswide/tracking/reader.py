"""Recorded runs, their scores, learning curves and weights.

Owns the reading of runs' artifacts and histories. Writes nothing to MLflow, computes no metric.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import mlflow
import numpy as np
from mlflow.entities import Run as RecordedRun
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray

from nuswide.tracking.registry import address_of
from nuswide.tracking.run import JOB_TAG, scratch_folder
from nuswide.tracking.score_file import FILE, SavedScores

WEIGHTS = "weights/weights.safetensors"  # in a training run's artifacts
SPLITS_FILE = "data/splits.csv"
LABEL_COUNTS = "data/label_distribution.json"
DEFAULT_EXPERIMENT = "0"  # MLflow's ID
WEIGHTS_TAG = "weights_sha256"  # of a version


def search_runs(experiments: Sequence[str], query: str) -> Iterator[RecordedRun]:
    """Yield all runs that match, the latest first."""
    client, token = mlflow.MlflowClient(), None
    while True:
        page = client.search_runs(
            list(experiments), query, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        if not (token := page.token):
            return


def find_run(run_id: str) -> RecordedRun | None:
    """Return a run by its ID; None if this tracking store has none."""
    try:
        return mlflow.MlflowClient().get_run(run_id)
    except MlflowException:
        return None


def find_experiment(name: str) -> str | None:
    """Return the ID of an MLflow experiment; None if there is none of that name."""
    experiment = mlflow.MlflowClient().get_experiment_by_name(name)
    return str(experiment.experiment_id) if experiment else None


def experiment_name(experiment_id: str) -> str:
    """Return the name of an MLflow experiment; empty for the default one."""
    if experiment_id == DEFAULT_EXPERIMENT:
        return ""
    return str(mlflow.MlflowClient().get_experiment(experiment_id).name)


def experiment_names() -> list[str]:
    """Return the names of all MLflow experiments."""
    return [experiment.name for experiment in mlflow.MlflowClient().search_experiments()]


def fetch_text(run_id: str, name: str) -> str | None:
    """Return a text artifact of a run; None if it has none of that name."""
    try:
        return str(mlflow.artifacts.load_text(f"runs:/{run_id}/{name}"))
    except MlflowException:
        return None


def fetch_splits(run_id: str) -> dict[str, str] | None:
    """Return the split of each image that a run had; None if it did not record them."""
    text = fetch_text(run_id, SPLITS_FILE)
    return None if text is None else dict(list(csv.reader(io.StringIO(text)))[1:])


def fetch_label_counts(run_id: str) -> dict[str, int] | None:
    """Return the number of train images with each label that a run had; None if unrecorded."""
    text = fetch_text(run_id, LABEL_COUNTS)
    if text is None:
        return None
    table = json.loads(text)
    label, train = (table["columns"].index(column) for column in ("label", "train"))
    return {row[label]: int(row[train]) for row in table["data"]}


def fetch_run_weights(run_id: str, folder: Path) -> Path | None:
    """Download the torch weights of a training run into a folder; None if they cannot be had."""
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=WEIGHTS, dst_path=str(folder)
        )
    except (MlflowException, OSError):
        return None
    return Path(path)


def training_run(version: ModelVersion) -> RecordedRun | None:
    """Return the run that made a registered version; None if it was deleted or is elsewhere."""
    return find_run(version.run_id) if version.run_id else None


def evaluations(version: ModelVersion) -> Iterator[RecordedRun]:
    """Yield the runs that evaluated a registered version, the latest first."""
    experiments = mlflow.MlflowClient().search_experiments()
    query = (
        f"tags.`{JOB_TAG}` = 'evaluate' and attributes.status = 'FINISHED' "
        f"and tags.`model.version` = {_quoted(f'{version.name}/{version.version}')}"
    )
    yield from search_runs([experiment.experiment_id for experiment in experiments], query)


def _quoted(text: str) -> str:
    """Return a text as a value of MLflow's filters, in which no quote can be escaped."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def has_scores(run_id: str, split: str) -> bool:
    """Whether a run kept its scores of a split."""
    found = mlflow.MlflowClient().list_artifacts(run_id, split)
    return f"{split}/{FILE}" in {file.path for file in found}


def fetch_scores(run_id: str, split: str) -> SavedScores | None:
    """Return the scores, targets and thresholds that a run kept of a split; None if it kept none.

    They are sorted by the images' names, so that resampling does not depend on the order of images.
    """
    if not has_scores(run_id, split):
        return None
    with scratch_folder() as folder:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=f"{split}/{FILE}", dst_path=str(folder)
        )
        saved = SavedScores.load(Path(path))
    if saved.targets is None or saved.thresholds is None:
        raise click.ClickException(f"{split}/{FILE} of run {run_id} lacks targets or thresholds")
    return _take(saved, np.argsort(np.array(saved.images)), np.arange(len(saved.labels)))


def fetch_weights(version: ModelVersion, folder: Path) -> Path:
    """Download the torch weights of a registered version into a folder; return the file.

    Raises click.ClickException if its run has none, or was trained further afterwards.
    """
    name, digest = address_of(version), version.tags.get(WEIGHTS_TAG)
    if not digest:
        raise click.ClickException(f"{name} has no torch weights; give the version it was made of")
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=version.run_id, artifact_path=WEIGHTS, dst_path=str(folder)
        )
    except (MlflowException, OSError) as error:
        raise click.ClickException(
            f"the weights of {name} cannot be fetched from its run {version.run_id} ({error})"
        ) from error
    if file_digest(Path(path)) != digest:
        raise click.ClickException(
            f"the weights of {name} are overwritten: its run {version.run_id} was trained further; "
            "give the run's last version"
        )
    return Path(path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def align(saved: SavedScores, like: SavedScores) -> SavedScores:
    """Return scores in the order of another's images and labels.

    Raises click.ClickException unless both have the same images, labels and targets.
    """
    rows = _order(saved.images, like.images, "images")
    columns = _order(saved.labels, like.labels, "labels")
    aligned = _take(saved, rows, columns)
    if not _has_same_targets(aligned, like):
        raise click.ClickException(
            "the two have different targets for the same images; they cannot be paired"
        )
    return aligned


def _take(saved: SavedScores, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> SavedScores:
    assert saved.targets is not None and saved.thresholds is not None
    cells = np.ix_(rows, columns)
    return SavedScores(
        tuple(saved.images[row] for row in rows),
        tuple(saved.labels[column] for column in columns),
        saved.scores[cells],
        saved.targets[cells],
        None if saved.known is None else saved.known[cells],
        saved.thresholds[columns],
    )


def _order(own: Sequence[str], wanted: Sequence[str], kind: str) -> NDArray[np.intp]:
    index_of = {name: i for i, name in enumerate(own)}
    missing = len([name for name in wanted if name not in index_of])
    if len(own) != len(wanted) or missing:
        raise click.ClickException(
            f"the two have different {kind}: {len(own)} and {len(wanted)}, of which {missing} are "
            "missing in the first; they cannot be paired"
        )
    return np.array([index_of[name] for name in wanted], dtype=np.intp)


def _has_same_targets(one: SavedScores, other: SavedScores) -> bool:
    if one.targets is None or other.targets is None:
        return False
    known, other_known = (
        np.ones(s.scores.shape, dtype=np.bool_) if s.known is None else s.known
        for s in (one, other)
    )
    is_same = np.array_equal(known, other_known)
    return is_same and np.array_equal(one.targets[known] > 0, other.targets[known] > 0)


def fetch_curve(
    run_id: str, key: str, *, most: int = 200
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return a metric's steps and values; more than `most` are averaged in blocks."""
    history = mlflow.MlflowClient().get_metric_history(run_id, key)
    points = np.array(sorted((m.step, m.value) for m in history), dtype=np.float64).reshape(-1, 2)
    if len(points) > most:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, most)])
    return np.rint(points[:, 0]).astype(np.int64), points[:, 1]
