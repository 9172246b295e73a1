"""A recorded run, trained once more: what is as it was, and what comes out.

Owns the comparison with the record. Checks out nothing and installs nothing: it only tells.

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
class Check:
    """Something that a run depends on, as it was recorded and as it is now."""

    name: str
    recorded: str
    now: str

    @property
    def is_same(self) -> bool:
        """Whether it is as it was recorded."""
        return self.recorded == self.now


def reproduce(run_id: str, changes: Mapping[str, str]) -> None:
    """Train a finished run again as a new run, and report each figure's difference.

    changes: fields that say where things are (data, cache, checkpoints). Raises
    click.ClickException if the run has no training to repeat.
    """
    recorded = _find(run_id)
    config, checks = _configuration(recorded, changes)
    checks += _surroundings(recorded) + _data(recorded, config)
    click.echo(_checks_text(checks))
    again = train_and_register(config, name=f"again {recorded.info.run_name}",
                               tags={REPRODUCES_TAG: run_id})  # fmt: skip
    if again is None:  # a process that does not write
        return
    rows = difference_rows(recorded.data.metrics, _find(again).data.metrics)
    gap = _weights_gap(run_id, again)
    text = f"{_metrics_text(rows)}\n{_verdict(rows, gap, checks)}"
    _record(again, f"{_checks_text(checks)}\n\n{text}")
    click.echo(f"\n{text}\nrun {again}")


def _find(run_id: str) -> RecordedRun:
    if (run := reader.find_run(run_id)) is None:
        raise click.ClickException(f"there is no run {run_id} in this tracking store")
    if run.data.tags.get(JOB_TAG) != "train" or run.info.status != "FINISHED":
        raise click.ClickException(f"run {run_id} is no finished training run; give another")
    return run


def _configuration(run: RecordedRun, changes: Mapping[str, str]) -> tuple[Config, list[Check]]:
    """The recorded configuration; a check for each field that is not as this version has it."""
    if (text := reader.fetch_text(run.info.run_id, "config.yaml")) is None:
        raise click.ClickException(f"run {run.info.run_id} has recorded no config.yaml")
    recorded: dict[str, Any] = yaml.safe_load(text)
    known = {f.name: f.default for f in fields(Config)}
    checks = [
        Check(f"field {name}", str(value), "no such field")
        for name, value in recorded.items()
        if name not in known
    ]
    checks += [
        Check(f"field {name}", "no such field", str(default))
        for name, default in known.items()
        if name not in recorded
    ]
    kept = {name: value for name, value in recorded.items() if name in known}
    config = load_config(
        None, kept | {k: v for k, v in changes.items() if k in may_differ("reproduce")}
    )
    return replace(config, resume="none", registered_model="none"), checks


def _surroundings(run: RecordedRun) -> list[Check]:
    """Code, versions and hardware."""
    now, tags = environment(), run.data.tags
    names = sorted({k for k in (*now, *tags) if k.startswith(("software.", "hardware."))})
    checks = [Check(name, tags.get(name, "none"), now.get(name, "none")) for name in names]
    commit = Check("code commit", tags.get(_COMMIT, "unknown"), now.get(_COMMIT, "unknown"))
    changed = Check(
        "uncommitted changes", tags.get(_CHANGES, "unknown"), now.get(_CHANGES, "unknown")
    )
    return [commit, changed, *checks]


def _data(run: RecordedRun, config: Config) -> list[Check]:
    """The data set's digest, with val carved as training does."""
    manifest = read_manifest(config.data)
    if config.val_fraction and not len(manifest.indices("val")):
        manifest = carve_val(manifest, fraction=config.val_fraction, seed=config.split_seed)
    return [Check("data digest", run.data.tags.get("data.digest", "unknown"), manifest.digest)]


def difference_rows(
    recorded: Mapping[str, float], again: Mapping[str, float]
) -> list[tuple[str, float, float]]:
    """Each figure that either run has, as recorded and as it came out again; no times."""
    names = sorted((recorded.keys() | again.keys()) - _TIMED)
    nothing = float("nan")
    return [(name, recorded.get(name, nothing), again.get(name, nothing)) for name in names]


def _weights_gap(run_id: str, again: str) -> float | None:
    """The largest difference of a weight; None if either run's weights can't be had."""
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


def _verdict(rows: list[tuple[str, float, float]], gap: float | None, checks: list[Check]) -> str:
    differing = [row for row in rows if not _is_equal(*row[1:])]
    weights = "the weights are identical" if gap == 0 else f"weights differ by {gap} at most"
    if gap is None:
        weights = "the weights could not be compared"
    if not differing:
        return f"All {len(rows)} figures are identical; {weights}."
    changed = [check.name for check in checks if not check.is_same]
    reason = f"not as recorded: {', '.join(changed)}" if changed else "all else is as recorded"
    return f"{len(differing)} of {len(rows)} figures differ; {weights}; {reason}."


def _is_equal(one: float, other: float) -> bool:
    return one == other or bool(np.isnan(one) and np.isnan(other))


def _checks_text(checks: list[Check]) -> str:
    lines = (
        f"{'as recorded' if check.is_same else 'DIFFERS':12s} {check.name:22s} {check.recorded}"
        + ("" if check.is_same else f"  now {check.now}")
        for check in checks
    )
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
    """Put the comparison into the new run's record."""
    summary = f"**Reproduction.** {text.splitlines()[-1]}"
    amend_note(run_id, text, name="reproduction.txt", summary=summary)
