"""The study in Optuna: what it agrees to, and which trial is next.

Owns the giving out of trials, each function to be called by one worker at a time. What is next
follows from the study alone, so that it does not matter where a worker has died. Trains nothing.

    take_stock(study)
    place = queue_next(study, plan)
"""

import uuid
from typing import Any

import click
import optuna
from optuna.trial import TrialState

from nuswide.training.sweep.plan import Dimension, Plan, Value
from nuswide.training.sweep.propose import propose
from nuswide.training.sweep.trials import latest_by_place, read_trials


def agree(study: optuna.Study, plan: Plan, digest: str) -> Plan:
    """Check that a study is gone on with as it was begun; gives the plan with its trials."""
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
    """The rule by which a trial is ended after an epoch, in view of the others at that epoch."""
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if plan.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if plan.pruner == "hyperband":
        epochs = plan.config(plan.corner).epochs
        return optuna.pruners.HyperbandPruner(max_resource=epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def take_stock(study: optuna.Study) -> None:
    """Fail the trials of workers that died, so that these are queued again."""
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        # Its worker died between taking it and the first heartbeat: both are done alone.
        if "worker" not in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)


def queue_next(study: optuna.Study, plan: Plan) -> int | None:
    """Queue a lost trial, or else a new one, unless one is waiting; gives its place."""
    trials = {trial.place: trial for trial in read_trials(study)}
    by_state = {trial.state: trial for trial in reversed(trials.values())}
    if waiting := by_state.get("waiting"):
        return waiting.place
    if lost := by_state.get("lost"):
        attrs = {"place": lost.place, "params": lost.params, "deaths": lost.deaths}
        if lost.run:
            attrs["run"] = lost.run
        study.enqueue_trial(lost.params, user_attrs=attrs)
        return lost.place
    place = next(place for place in range(plan.trials + 1) if place not in trials)
    if place == plan.trials:
        return None
    params = propose(plan, place, list(latest_by_place(study).values()))
    study.enqueue_trial(params, user_attrs={"place": place, "params": params})
    return place


def suggest(trial: optuna.Trial, dimension: Dimension) -> Value:
    """Take the queued value as Optuna's, so that its own tools know the search, too."""
    if dimension.values:
        chosen: Any = trial.suggest_categorical(dimension.name, dimension.values)
        return chosen
    if dimension.is_whole:
        low, high = int(dimension.low), int(dimension.high)
        return trial.suggest_int(dimension.name, low, high, log=dimension.log)
    return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)
