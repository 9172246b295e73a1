"""What is read back from the record: scores and curves of runs that were recorded before.

Owns the way from a run's artifacts and histories to arrays. Writes nothing, computes no figure.

    saved = fetch_scores(run_id, "test")  # None if the run kept none
    steps, values = fetch_curve(run_id, "val/map")
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import mlflow
import numpy as np
from numpy.typing import NDArray

from nuswide.scores import FILE, SavedScores
from nuswide.tracking import scratch_folder


def has_scores(run_id: str, split: str) -> bool:
    """Whether a run kept its scores of a split."""
    found = mlflow.MlflowClient().list_artifacts(run_id, split)
    return f"{split}/{FILE}" in {file.path for file in found}


def fetch_scores(run_id: str, split: str) -> SavedScores | None:
    """The scores, targets and thresholds that a run kept of a split; None if it kept none."""
    if not has_scores(run_id, split):
        return None
    with scratch_folder() as folder:
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=f"{split}/{FILE}", dst_path=str(folder)
        )
        saved = SavedScores.load(Path(path))
    if saved.targets is None or saved.thresholds is None:
        raise click.ClickException(f"{split}/{FILE} of run {run_id} lacks targets or thresholds")
    return saved


def align(saved: SavedScores, like: SavedScores) -> SavedScores:
    """Bring images and labels into the order of another's.

    Raises click.ClickException unless both have the same images, labels and truth.
    """
    rows = _order(saved.images, like.images, "images")
    columns = _order(saved.labels, like.labels, "labels")
    place = np.ix_(rows, columns)
    moved = {
        name: value[place]
        for name in ("scores", "targets", "known")
        if (value := getattr(saved, name)) is not None
    }
    assert saved.thresholds is not None
    aligned = replace(saved, images=like.images, labels=like.labels, **moved,
                      thresholds=saved.thresholds[columns])  # fmt: skip
    if not _is_same_truth(aligned, like):
        raise click.ClickException(
            "the same images have other labels in the two; they can't be paired"
        )
    return aligned


def _order(own: Sequence[str], wanted: Sequence[str], kind: str) -> NDArray[np.intp]:
    place = {name: i for i, name in enumerate(own)}
    if len(own) != len(wanted) or any(name not in place for name in wanted):
        missing = len([name for name in wanted if name not in place])
        raise click.ClickException(
            f"the two have other {kind}: {len(own)} and {len(wanted)}, of which {missing} are "
            "missing in the first; they can't be paired"
        )
    return np.array([place[name] for name in wanted], dtype=np.intp)


def _is_same_truth(one: SavedScores, other: SavedScores) -> bool:
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
    """A metric's steps and values, at most `most` of each: longer ones as means of blocks."""
    history = mlflow.MlflowClient().get_metric_history(run_id, key)
    points = np.array(sorted((m.step, m.value) for m in history), dtype=np.float64).reshape(-1, 2)
    if len(points) > most:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, most)])
    return np.rint(points[:, 0]).astype(np.int64), points[:, 1]
