"""The Optuna study: whether it matches the plan, and which trial is next.

Owns the assignment of trials; the caller of each function holds the study's lock. The next trial
follows from the study alone, so that a worker may die at any point. Trains nothing.
"""

import uuid
from typing import Any

import click
import optuna
from optuna.trial import TrialState

from nuswide.training.sweep.plan import Dimension, Plan, Value
from nuswide.training.sweep.propose import propose
from nuswide.training.sweep.trials import INDEX, latest_by_index, read_trials


def agree(study: optuna.Study, plan: Plan, digest: str) -> Plan:
    """Check that a plan is the one that the study was begun with, and return it.

    More trials are allowed. Raises click.UsageError if anything else differs.
    """
    now = {**plan.describe(), "data digest": digest}
    attrs = study.user_attrs
    if "plan" not in attrs:
        if study.get_trials():
            raise click.UsageError(f"study {study.study_name!r} is no sweep's; give another --name")
        for key, value in (("key", uuid.uuid4().hex), ("trials", plan.trials), ("plan", now)):
            study.set_user_attr(key, value)
        return plan
    before = attrs["plan"]
    changed = [
        f"{k} was {before.get(k, 'the default')}, is {now.get(k, 'the default')}"
        for k in sorted(before.keys() | now.keys())
        if before.get(k) != now.get(k)
    ]
    if attrs["trials"] > plan.trials:
        changed.append(f"trials was {attrs['trials']}, is {plan.trials}")
    if changed:
        raise click.UsageError(
            f"study {study.study_name!r} was begun with another plan: {'; '.join(changed)}; give "
            "--name NAME for a study of its own"
        )
    if attrs["trials"] < plan.trials:
        study.set_user_attr("trials", plan.trials)
    return plan


def create_pruner(plan: Plan) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner, which compares a trial after an epoch with the others there."""
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if plan.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if plan.pruner == "hyperband":
        epochs = plan.config(plan.corner).epochs
        return optuna.pruners.HyperbandPruner(max_resource=epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def take_stock(study: optuna.Study) -> None:
    """Mark the trials of dead workers as failed, so that they are queued again."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        # Its worker died between taking it and the first heartbeat: both are under the lock.
        if "worker" not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)


def queue_next(study: optuna.Study, plan: Plan) -> int | None:
    """Queue a lost trial or a new one, unless one is queued; return its index, None at the end."""
    trials = {trial.index: trial for trial in read_trials(study)}
    by_state = {trial.state: trial for trial in reversed(trials.values())}
    if waiting := by_state.get("waiting"):
        return waiting.index
    if lost := by_state.get("lost"):
        attrs = {INDEX: lost.index, "params": lost.params, "deaths": lost.deaths}
        if lost.run:
            attrs["run"] = lost.run
        study.enqueue_trial(lost.params, user_attrs=attrs)
        return lost.index
    index = next(index for index in range(plan.trials + 1) if index not in trials)
    if index == plan.trials:
        return None
    params = propose(plan, index, list(latest_by_index(study).values()))
    study.enqueue_trial(params, user_attrs={INDEX: index, "params": params})
    return index


def suggest(trial: optuna.Trial, dimension: Dimension) -> Value:
    """Return a dimension's queued value by Optuna's own calls, so that its tools see the search."""
    if dimension.values:
        chosen: Any = trial.suggest_categorical(dimension.name, dimension.values)
        return chosen
    if dimension.is_whole:
        low, high = int(dimension.low), int(dimension.high)
        return trial.suggest_int(dimension.name, low, high, log=dimension.log)
    return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)
