"""The trials of a study as a user sees them: one for each index, even if workers died.

Owns the reading of Optuna's trials and their table. Optuna has several trials with one index if
workers died on it. Changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nuswide.reporting import table
from nuswide.reporting.table import Column, make_table
from nuswide.training.sweep.plan import Params, Plan

INDEX = "place"  # the user attribute of Optuna's trials, as existing studies have it
MOST_DEATHS = 4  # workers that may die on a trial before it counts as failed
_STATES = {
    TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """The state of one trial of the study. index: from 0.

    state: complete, pruned, failed, running, waiting (queued), or lost (to be queued again).
    value: mAP on val, None before there is one. epochs: those evaluated. run: the ID of its MLflow
    run. deaths: workers that died on it. reason: of a failure.
    """

    index: int
    state: str
    params: Params
    value: float | None
    epochs: int
    seconds: float
    run: str | None
    deaths: int
    reason: str

    @property
    def is_done(self) -> bool:
        """Whether the trial's state is final."""
        return self.state in ("complete", "pruned", "failed")


def read_trials(study: optuna.Study) -> list[Trial]:
    """Return the trials of a study in the order of their indices."""
    return [_read(trial) for _, trial in sorted(latest_by_index(study).items())]


def latest_by_index(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Return the last Optuna trial of each index; earlier ones died with their workers."""
    trials = study.get_trials(deepcopy=False)
    return {trial.user_attrs[INDEX]: trial for trial in trials if INDEX in trial.user_attrs}


def _read(trial: FrozenTrial) -> Trial:
    attrs = trial.user_attrs
    deaths, reason = int(attrs.get("deaths", 0)), str(attrs.get("failed", ""))
    if trial.state == TrialState.FAIL:
        deaths += "failed" not in attrs and "stopped" not in attrs
        if deaths >= MOST_DEATHS:
            reason = f"{deaths} workers died on it"
    state = _STATES.get(trial.state) or ("failed" if reason else "lost")
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    value = trial.value if state in ("complete", "pruned") else None
    return Trial(
        attrs[INDEX], state, attrs["params"], value, len(trial.intermediate_values), seconds,
        attrs.get("run"), deaths, reason,
    )  # fmt: skip


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the complete trial with the highest mAP on val, the first one in case of a tie."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: (trial.value, -trial.index), default=None)


def columns(plan: Plan, trials: Sequence[Trial]) -> dict[str, list[Any]]:
    """Return the table of trials, best first; it shows nothing of test."""
    order = ("complete", "pruned", "running", "waiting", "lost", "failed")
    rows = sorted(trials, key=lambda t: (order.index(t.state), -(t.value or 0), t.index))
    found: dict[str, list[Any]] = {
        "trial": [t.index + 1 for t in rows],
        "state": [t.state for t in rows],
        "val/map": [None if t.value is None else round(t.value, 4) for t in rows],
        "epochs": [t.epochs for t in rows],
        "seconds": [round(t.seconds, 1) for t in rows],
    }
    found |= {d.name: [t.params[d.name] for t in rows] for d in plan.search}
    return found | {"run": [t.run or "" for t in rows], "reason": [t.reason for t in rows]}


def to_text(plan: Plan, trials: Sequence[Trial]) -> str:
    """Return the table for the terminal."""
    found = columns(plan, trials)
    if not any(found["reason"]):
        del found["reason"]
    titles = [
        Column(title, ".4g" if any(isinstance(value, float) for value in values) else "")
        for title, values in found.items()
    ]
    return table.to_text(make_table(titles, zip(*found.values(), strict=True)))
