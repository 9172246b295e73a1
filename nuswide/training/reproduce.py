"""A recorded run, trained again: what it depends on, and how its metrics differ.

Owns the comparison with the record. It reports a changed environment, but restores none.

    reproduce("0123...", changes={"data": "elsewhere"})
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import click
import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file

from nuswide.config import Config, load_config, may_differ
from nuswide.data.dataset import read_manifest
from nuswide.data.manifest import carve_val
from nuswide.reporting.table import Column, make_table, to_text
from nuswide.tracking import reader
from nuswide.tracking.environment import environment
from nuswide.tracking.reader import RecordedRun
from nuswide.tracking.run import JOB_TAG, amend_note, scratch_folder
from nuswide.training.pipeline import train_and_register

REPRODUCES_TAG = "nuswide.reproduces"
_TIMED = {"train/images_per_s", "train/seconds", "run/seconds"}
_ALWAYS_SHOWN = ("test/map", "test/micro/f1", "test/macro/f1")
_COMMIT, _CHANGES = "mlflow.source.git.commit", "git.uncommitted_changes"


@dataclass(frozen=True)
class Dependency:
    """A setting, version or digest that a run depends on, as recorded and as it is now."""

    name: str
    recorded: str
    now: str

    @property
    def is_same(self) -> bool:
        """Whether it is as recorded."""
        return self.recorded == self.now


def reproduce(run_id: str, changes: Mapping[str, str]) -> None:
    """Train a finished run again as a new run, and report the difference of each metric.

    changes: fields that name folders (data, cache, checkpoints). Raises click.ClickException if
    the run is no finished training run.
    """
    recorded = _find(run_id)
    config, dependencies = _configuration(recorded, changes)
    dependencies += _surroundings(recorded) + _data(recorded, config)
    click.echo(_dependencies_text(dependencies))
    again = train_and_register(config, name=f"again {recorded.info.run_name}",
                               tags={REPRODUCES_TAG: run_id})  # fmt: skip
    if again is None:  # not the main process
        return
    rows = difference_rows(recorded.data.metrics, _find(again).data.metrics)
    gap = _weights_gap(run_id, again)
    text = f"{_metrics_text(rows)}\n{_verdict(rows, gap, dependencies)}"
    _record(again, f"{_dependencies_text(dependencies)}\n\n{text}")
    click.echo(f"\n{text}\nrun {again}")


def _find(run_id: str) -> RecordedRun:
    if (run := reader.find_run(run_id)) is None:
        raise click.ClickException(f"there is no run {run_id} in this tracking store")
    if run.data.tags.get(JOB_TAG) != "train" or run.info.status != "FINISHED":
        raise click.ClickException(f"run {run_id} is no finished training run; give another")
    return run


def _configuration(run: RecordedRun, changes: Mapping[str, str]) -> tuple[Config, list[Dependency]]:
    """Return the recorded configuration, and the fields that only it or only this version has."""
    if (text := reader.fetch_text(run.info.run_id, "config.yaml")) is None:
        raise click.ClickException(f"run {run.info.run_id} has recorded no config.yaml")
    recorded: dict[str, Any] = yaml.safe_load(text)
    known = {f.name: f.default for f in fields(Config)}
    dependencies = [
        Dependency(f"field {name}", str(value), "no such field")
        for name, value in recorded.items()
        if name not in known
    ]
    dependencies += [
        Dependency(f"field {name}", "no such field", str(default))
        for name, default in known.items()
        if name not in recorded
    ]
    kept = {name: value for name, value in recorded.items() if name in known}
    config = load_config(
        None, kept | {k: v for k, v in changes.items() if k in may_differ("reproduce")}
    )
    return replace(config, resume="none", registered_model="none"), dependencies


def _surroundings(run: RecordedRun) -> list[Dependency]:
    """Return commit, versions and hardware."""
    now, tags = environment(), run.data.tags
    names = sorted({k for k in (*now, *tags) if k.startswith(("software.", "hardware."))})
    dependencies = [
        Dependency(name, tags.get(name, "none"), now.get(name, "none")) for name in names
    ]
    commit = Dependency("code commit", tags.get(_COMMIT, "unknown"), now.get(_COMMIT, "unknown"))
    changed = Dependency(
        "uncommitted changes", tags.get(_CHANGES, "unknown"), now.get(_CHANGES, "unknown")
    )
    return [commit, changed, *dependencies]


def _data(run: RecordedRun, config: Config) -> list[Dependency]:
    """Return the data set's digest, with val split off as in training."""
    manifest = read_manifest(config.data)
    if config.val_fraction and not len(manifest.indices("val")):
        manifest = carve_val(manifest, fraction=config.val_fraction, seed=config.split_seed)
    return [Dependency("data digest", run.data.tags.get("data.digest", "unknown"), manifest.digest)]


def difference_rows(
    recorded: Mapping[str, float], again: Mapping[str, float]
) -> list[tuple[str, float, float]]:
    """Return (name, recorded, again) of each metric of either run, except times."""
    names = sorted((recorded.keys() | again.keys()) - _TIMED)
    nothing = float("nan")
    return [(name, recorded.get(name, nothing), again.get(name, nothing)) for name in names]


def _weights_gap(run_id: str, again: str) -> float | None:
    """Return the largest difference of a weight; None if it cannot be computed."""
    both = [_weights(one) for one in (run_id, again)]
    if not all(both) or both[0].keys() != both[1].keys():
        return None
    pairs = ((both[0][name], both[1][name]) for name in both[0])
    return max(float(np.abs(one.astype(np.float64) - other).max(initial=0)) for one, other in pairs)


def _weights(run_id: str) -> dict[str, NDArray[Any]]:
    with scratch_folder() as folder:
        path = reader.fetch_run_weights(run_id, folder)
        weights: dict[str, NDArray[Any]] = load_file(path) if path else {}
    return weights


def _verdict(
    rows: list[tuple[str, float, float]], gap: float | None, dependencies: list[Dependency]
) -> str:
    differing = [row for row in rows if not _is_equal(*row[1:])]
    weights = "the weights are identical" if gap == 0 else f"weights differ by {gap} at most"
    if gap is None:
        weights = "the weights could not be compared"
    if not differing:
        return f"All {len(rows)} metrics are identical; {weights}."
    changed = [dependency.name for dependency in dependencies if not dependency.is_same]
    reason = f"not as recorded: {', '.join(changed)}" if changed else "all else is as recorded"
    return f"{len(differing)} of {len(rows)} metrics differ; {weights}; {reason}."


def _is_equal(one: float, other: float) -> bool:
    return one == other or bool(np.isnan(one) and np.isnan(other))


def _dependencies_text(dependencies: list[Dependency]) -> str:
    lines = []
    for one in dependencies:
        state, now = ("as recorded", "") if one.is_same else ("DIFFERS", f"  now {one.now}")
        lines.append(f"{state:12s} {one.name:22s} {one.recorded}{now}")
    return "\n".join(lines)


def _metrics_text(rows: list[tuple[str, float, float]]) -> str:
    """Write a line for each metric that differs, and always for test's headline."""
    columns = ("metric", Column("recorded", ".6f"), Column("again", ".6f"),
               Column("difference", "+.1e"))  # fmt: skip
    shown = (
        (name, one, other, other - one)
        for name, one, other in rows
        if not _is_equal(one, other) or name in _ALWAYS_SHOWN
    )
    return to_text(make_table(columns, shown))


def _record(run_id: str, text: str) -> None:
    """Record the comparison in the new run."""
    summary = f"**Reproduction.** {text.splitlines()[-1]}"
    amend_note(run_id, text, name="reproduction.txt", summary=summary)
