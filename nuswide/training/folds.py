"""Cross-validation: a training run for each fold, and the mean and deviation of their metrics.

Owns the order of the folds, and what is recorded of all. A fold is val in a training run of its
own, whose metrics on val are those of the fold. The test split is the same in all, and no fold has
images of it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import click
import numpy as np

from nuswide.config import Config, may_differ
from nuswide.core import distributed, files
from nuswide.data.dataset import read_manifest
from nuswide.evaluation.evaluate import SUMMARY
from nuswide.metrics import HEADLINE
from nuswide.reporting.table import Column, Table, format_value, make_table, to_markdown, to_text
from nuswide.tracking.folds_run import FoldsRun
from nuswide.tracking.reader import RecordedRun
from nuswide.tracking.relaunch import find_launcher, same_command
from nuswide.tracking.store import open_store
from nuswide.training import run_folder
from nuswide.training.pipeline import train_and_register
from nuswide.training.starting_point import with_numbered_weights
from nuswide.training.step import choose_device

_METRICS = tuple(f"{split}/{name}" for split in ("val", "test") for name in HEADLINE)
_SHOWN = tuple(f"{split}/{name}" for split in ("val", "test") for name in SUMMARY)


def train_folds(config: Config, *, name: str) -> None:
    """Train once for each of config.folds, as child runs of one run, and record mean metrics.

    No model is registered. The same call again continues what was interrupted. Raises
    click.UsageError for fields that belong to one training run.
    """
    if config.fold or config.resume != "none":
        raise click.UsageError(
            "folds trains every fold and continues by itself; leave out fold and resume"
        )
    with distributed.process_group(choose_device(config.device)):
        config = replace(with_numbered_weights(config), registered_model="none")
        with _parent_run(config, name) as parent:
            for fold in range(config.folds):
                _train_fold(replace(config, fold=fold), parent)
            if parent:
                _conclude(parent, config)


@contextmanager
def _parent_run(config: Config, name: str) -> Iterator[FoldsRun | None]:
    """Begin the parent run, or continue it, and end it in any case; None in other processes."""
    if not distributed.is_main():
        yield None
        return
    open_store()
    launcher = find_launcher()  # before the run is joined
    key, checkpoints = _key(config), Path(config.checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    busy = "another process is training these folds; wait for it, or stop it"
    with files.exclusive_lock(checkpoints / f"folds-{key}.lock", busy=busy):
        parent = FoldsRun.join(key, name)
        parent.log_params({k: str(v) for k, v in asdict(config).items() if k != "fold"})
        click.echo(f"{config.folds} folds in run {parent.id}\n{parent.address}")
        status = "FAILED"
        try:
            yield parent
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            click.echo(f"\ninterrupted; continue with\n  {same_command(launcher)}")
            raise
        finally:
            parent.set_status(status)


def _key(config: Config) -> str:
    """Return a digest of all that the runs of the folds have in common.

    A field with its default has no part in it, so that the key outlasts new fields.
    """
    ignored = may_differ("resume") | {"fold"}
    same = {
        f.name: value
        for f in fields(Config)
        if f.name not in ignored and (value := getattr(config, f.name)) != f.default
    }
    digest = read_manifest(config.data).full_digest
    same |= {"digest": digest, "processes": distributed.world_size()}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def _train_fold(config: Config, parent: FoldsRun | None) -> None:
    """Train a fold unless its run is finished. parent: None if not the main process."""
    title = f"fold={config.fold} of folds={config.folds}"  # which is numbered from 0
    begun: tuple[str, str, dict[str, str]] | None = distributed.broadcast(
        _begin_fold(parent, config, title) if parent else None
    )
    if begun is None:
        distributed.say(f"{title} is trained already")
        return
    run_id, resume, earlier = begun
    distributed.say(f"\n{title}")
    try:
        train_and_register(
            replace(config, resume=resume), name=title, run_id=run_id, same_images=earlier
        )
    except BaseException:
        if parent:
            parent.end_child(run_id)  # which is open if it failed before the training joined it
        raise
    if parent:
        _record(parent, config)
        # MLflow has all that is kept of it.
        shutil.rmtree(Path(config.checkpoints) / run_id, ignore_errors=True)


def _begin_fold(
    parent: FoldsRun, config: Config, title: str
) -> tuple[str, str, dict[str, str]] | None:
    """Return the run to train the fold in, the value of `resume`, and an earlier fold's tags.

    None if the fold is finished. The tags are empty if no other fold is.
    """
    before = parent.latest().get(config.fold)
    if before and before.info.status == "FINISHED":
        return None
    parent.set_status("RUNNING")
    earlier = next((dict(run.data.tags) for run in _finished(parent).values()), {})
    if before:
        run_id = before.info.run_id
        if run_folder.is_resumable(Path(config.checkpoints) / run_id):
            return run_id, run_id, earlier
        parent.end_child(run_id)
    return parent.begin_fold(config.fold, title), "none", earlier


def _finished(parent: FoldsRun) -> dict[int, RecordedRun]:
    runs = parent.latest()
    return {fold: runs[fold] for fold in sorted(runs) if runs[fold].info.status == "FINISHED"}


def mean_and_deviation(metrics: Mapping[int, Mapping[str, float]], key: str) -> tuple[float, float]:
    """Return the mean of a metric over the folds and its standard deviation between them.

    metrics: by fold. Both are NaN if the metric is undefined in a fold, or there are none.
    """
    values = np.array([own.get(key, np.nan) for own in metrics.values()])
    if len(values) < 2:
        return float(values.mean()) if len(values) else np.nan, np.nan
    return float(values.mean()), float(values.std(ddof=1))


def _record(parent: FoldsRun, config: Config) -> None:
    """Record the table of the folds so far, and the mean metrics once there are all."""
    runs = _finished(parent)
    metrics = {fold: run.data.metrics for fold, run in runs.items()}
    columns = {"fold": [str(fold) for fold in runs], "run": [r.info.run_id for r in runs.values()]}
    parent.log_table(
        columns | {key: [own.get(key) for own in metrics.values()] for key in _METRICS},
        "folds.json",
    )
    parent.set_note(note(metrics, n_folds=config.folds))
    if len(runs) < config.folds:
        return
    for key in _METRICS:
        for name, value in zip(("mean", "std"), mean_and_deviation(metrics, key), strict=True):
            if np.isfinite(value):
                parent.log_metric(f"{key}/{name}", value, step=0)


def note(metrics: Mapping[int, Mapping[str, float]], *, n_folds: int) -> str:
    """Write the description of the parent run. MLflow's page shows its first lines.

    metrics: by fold, of those that are finished.
    """
    n_done = len(metrics)
    of_which = f"{n_folds} folds" if n_done == n_folds else f"{n_done} of {n_folds} folds so far"
    lines = [f"**Mean ± standard deviation of {of_which}**"]
    for split in ("val", "test"):
        means = (_mean_text(metrics, split, name) for name in SUMMARY)
        lines.append(f"**On {split}: {'  '.join(means)}**")
    return "\n\n".join([*lines, to_markdown(_table(metrics))])


def _mean_text(metrics: Mapping[int, Mapping[str, float]], split: str, name: str) -> str:
    both = mean_and_deviation(metrics, f"{split}/{name}")
    return f"{name} {' ± '.join(format_value(value, '.3f') for value in both)}"


def _table(metrics: Mapping[int, Mapping[str, float]]) -> Table:
    """Return a row for each fold, then their mean and standard deviation."""
    both = [mean_and_deviation(metrics, key) for key in _SHOWN]
    rows = [(str(fold), *(own.get(key) for key in _SHOWN)) for fold, own in metrics.items()]
    rows += [("mean", *(mean for mean, _ in both)), ("std", *(std for _, std in both))]
    return make_table(("fold", *(Column(key, ".3f") for key in _SHOWN)), rows)


def _conclude(parent: FoldsRun, config: Config) -> None:
    """Record the means, as a process may have died before it did, and print the result."""
    _record(parent, config)
    table = _table({fold: run.data.metrics for fold, run in _finished(parent).items()})
    click.echo(f"\n{to_text(table)}\n\nrun {parent.id}\n{parent.address}")
