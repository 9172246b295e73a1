"""A recorded run, trained again: what it depends on, and how its metrics differ.

Owns the comparison with the record. It reports a changed environment, but restores none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import click
import numpy as np
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file

from nuswide.config import Config, known_fields, load_config, may_differ
from nuswide.models.timm_networks import TIMM
from nuswide.reporting.table import Column, make_table, to_text
from nuswide.tracking import reader
from nuswide.tracking.environment import CHANGES_TAG, COMMIT_TAG, PATCH_TAG, environment
from nuswide.tracking.reader import RecordedRun
from nuswide.tracking.run import JOB_TAG, amend_note, scratch_folder
from nuswide.training.pipeline import train_and_register
from nuswide.training.starting_point import starting_point

REPRODUCES_TAG = "nuswide.reproduces"
_TIMED = {"train/images_per_s", "train/seconds", "run/seconds"}
_ALWAYS_SHOWN = ("test/map", "test/micro/f1", "test/macro/f1")
_UNKNOWN = "unknown"
_DIGESTS = {
    "data digest": "data.digest", "image files": "data.images_digest",
    "initial network": "model.initial_digest",
}  # fmt: skip


@dataclass(frozen=True)
class Dependency:
    """A setting, version or digest that a run depends on, as recorded and as it is now."""

    name: str
    recorded: str
    now: str

    @property
    def is_known(self) -> bool:
        """Whether it was recorded; earlier versions recorded less."""
        return self.recorded != _UNKNOWN

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
    dependencies += _surroundings(recorded, config) + _inputs(recorded, config)
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
    completed = known_fields(recorded)
    dependencies = [
        Dependency(f"field {name}", str(value), "no such field")
        for name, value in recorded.items()
        if name not in completed
    ]
    dependencies += [
        Dependency(f"field {name}", "no such field", str(value))
        for name, value in completed.items()
        if name not in recorded
    ]
    config = load_config(
        None, completed | {k: v for k, v in changes.items() if k in may_differ("reproduce")}
    )
    return replace(config, resume="none", registered_model="none"), dependencies


def _surroundings(run: RecordedRun, config: Config) -> list[Dependency]:
    """Return commit, versions and hardware."""
    now, tags = environment(), run.data.tags
    commit = Dependency("code commit", tags.get(COMMIT_TAG, _UNKNOWN), now[COMMIT_TAG])
    changes = Dependency("uncommitted changes", _changes(tags), _changes(now))
    software = [
        Dependency(name, tags.get(name, _UNKNOWN), now.get(name, "none"))
        for name in sorted({k for k in (*now, *tags) if k.startswith("software.")})
        if name != "software.timm" or config.backbone.startswith(TIMM)
    ]
    hardware = [
        Dependency(name, tags.get(name, "none"), now.get(name, "none"))
        for name in sorted({k for k in (*now, *tags) if k.startswith("hardware.")})
    ]
    return [commit, changes, *hardware, *software]


def _changes(tags: Mapping[str, str]) -> str:
    """Return the digest of the uncommitted changes, or `false`; unknown if they were not kept."""
    is_changed = tags.get(CHANGES_TAG, _UNKNOWN)
    return tags.get(PATCH_TAG, _UNKNOWN if is_changed == "true" else is_changed)


def _inputs(run: RecordedRun, config: Config) -> list[Dependency]:
    """Return the digests of the data and of the network that training starts from."""
    now = starting_point(config)
    return [
        Dependency(name, run.data.tags.get(tag, _UNKNOWN), now[tag])
        for name, tag in _DIGESTS.items()
    ]


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
    changed = [d.name for d in dependencies if d.is_known and not d.is_same]
    unknown = [d.name for d in dependencies if not d.is_known]
    parts = [f"not as recorded: {', '.join(changed)}"] if changed else []
    parts += [f"not recorded: {', '.join(unknown)}"] if unknown else []
    reason = "; ".join(parts) or "all else is as recorded"
    return f"{len(differing)} of {len(rows)} metrics differ; {weights}; {reason}."


def _is_equal(one: float, other: float) -> bool:
    return one == other or bool(np.isnan(one) and np.isnan(other))


def _dependencies_text(dependencies: list[Dependency]) -> str:
    lines = []
    for one in dependencies:
        state, now = ("as recorded", "") if one.is_same else ("DIFFERS", f"  now {one.now}")
        if not one.is_known:
            state = "not recorded"
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
