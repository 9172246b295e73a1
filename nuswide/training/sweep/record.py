"""A study's side in MLflow: a parent run with a child for each trial.

Owns the parent's params, table, figures and best.yaml, and the making and ending of runs. Trains
nothing, and reads of a child its figure on val alone.

    parent = Parent.join(study_key, None, "loss_lr")
    child = parent.begin_child(place=3, params={"lr": 1e-3})
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import mlflow
import optuna
import yaml
from mlflow.entities import Param, RunStatus, RunTag
from mlflow.entities import Run as RecordedRun
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID
from PIL import Image

from nuswide.reporting import plots
from nuswide.tracking.run import JOB_TAG, environment, page_address
from nuswide.training.sweep.plan import Dimension, Params, Plan
from nuswide.training.sweep.trials import Trial, best_of, columns, to_text

VALUE = "val/map"
_STUDY, _TRIAL, STATE = "sweep.study", "sweep.trial", "sweep.state"
_TABLE = "trials.json"
_AS_TABLE = json.dumps([{"path": _TABLE, "type": "table"}])  # so that MLflow's page shows it so


class Parent:
    """The run of a study, which all of its workers share."""

    def __init__(self, run: RecordedRun) -> None:
        self.id: str = run.info.run_id
        self._experiment: str = run.info.experiment_id
        self._client = mlflow.MlflowClient()

    @classmethod
    def join(cls, key: str, run_id: str | None, name: str) -> "Parent":
        """Find the study's run, or begin it; to be called alone.

        key: the study's own. run_id: the run's, None if no worker has noted one. Raises
        click.ClickException if it is another tracking store's.
        """
        client = mlflow.MlflowClient()
        if run_id:
            try:
                return cls(client.get_run(run_id))
            except MlflowException:
                raise click.ClickException(
                    f"the study's run {run_id} is not in {mlflow.get_tracking_uri()}; set "
                    "MLFLOW_TRACKING_URI to the tracking server of its other workers"
                ) from None
        experiment = _experiment_id(client)
        found = client.search_runs([experiment], f"tags.`{_STUDY}` = '{key}'", max_results=1)
        if found:  # its worker was killed before it could note it
            return cls(found[0])
        tags = resolve_tags({_STUDY: key, JOB_TAG: "sweep", **environment()})
        return cls(client.create_run(experiment, tags=tags, run_name=name))

    @property
    def address(self) -> str:
        """Where MLflow's page shows it."""
        return page_address(self._experiment, self.id)

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        return str(self._client.get_run(self.id).info.status)

    def log_plan(self, plan: Plan, storage: str) -> None:
        """Record what is searched, how, and on top of what."""
        params = {"storage": storage, "trials": str(plan.trials), **plan.describe()}
        there = self._client.get_run(self.id).data.params
        missing = [Param(k, v[:6000]) for k, v in params.items() if k not in there]
        self._client.log_batch(self.id, params=missing)

    def set_status(self, status: str) -> None:
        """End it, or take it up again."""
        if RunStatus.is_terminated(RunStatus.from_string(status)):
            self._client.set_terminated(self.id, status)
        else:
            self._client.update_run(self.id, status)

    def adopt_launcher(self) -> None:
        """Note of the run that `mlflow run` has begun that it is a worker's; end it as it may."""
        if launcher := os.environ.pop("MLFLOW_RUN_ID", None):
            tags = {JOB_TAG: "sweep worker", MLFLOW_PARENT_RUN_ID: self.id}
            tags["mlflow.note.content"] = f"A worker of the sweep {self.id}."
            self._client.log_batch(launcher, tags=[RunTag(k, v) for k, v in tags.items()])

    def begin_child(self, place: int, params: Params) -> str:
        """Make the run of a trial; gives its ID."""
        name = f"trial {place + 1} {' '.join(f'{k}={v}' for k, v in params.items())}"
        tags = resolve_tags({MLFLOW_PARENT_RUN_ID: self.id, _TRIAL: str(place + 1)})
        return str(self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id)

    def value_of(self, child: str) -> float | None:
        """A finished trial's mAP on val; None while there is none."""
        run = self._client.get_run(child)
        is_finished = run.info.status == "FINISHED"
        return run.data.metrics.get(VALUE) if is_finished else None

    def end_child(self, child: str, state: str) -> None:
        """Say what became of a trial's run, and end it as KILLED if it runs."""
        self._client.set_tag(child, STATE, state)
        if self._client.get_run(child).info.status == "RUNNING":
            self._client.set_terminated(child, "KILLED")

    def end_strays(self, alive: set[str]) -> None:
        """End the children whose workers have died. alive: those that are trained."""
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.id}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs(
            [self._experiment], f"{query} and tags.`{_TRIAL}` LIKE '%'"
        ):
            if run.info.run_id not in alive:
                self.end_child(run.info.run_id, "given up")

    def log_progress(self, plan: Plan, trials: Sequence[Trial]) -> None:
        """Record the trials' table, and the best figure so far."""
        text = to_text(plan, trials)
        self._client.log_dict(self.id, _as_table(columns(plan, trials)), _TABLE)
        tags = {"mlflow.note.content": f"```\n{text}\n```", MLFLOW_LOGGED_ARTIFACTS: _AS_TABLE}
        self._client.log_batch(self.id, tags=[RunTag(k, v) for k, v in tags.items()])
        if best := best_of(trials):
            done = len([trial for trial in trials if trial.is_done])
            assert best.value is not None
            self._client.log_metric(self.id, f"best/{VALUE}", best.value, step=done)

    def log_outcome(self, plan: Plan, trials: Sequence[Trial], study: optuna.Study) -> str | None:
        """Record the figures and the best trial's experiment; gives this file's text."""
        for name, image in draw(plan, trials, study).items():
            self._client.log_image(self.id, image, f"{name}.png")
        if not (best := best_of(trials)):
            return None
        text = best_yaml(plan, best, trials, study.study_name)
        self._client.log_text(self.id, text, "best.yaml")
        return text


def default_storage() -> str:
    """A file beside the tracking store, where that is a file; else in data/."""
    backend, _, path = mlflow.get_tracking_uri().partition("sqlite:///")
    folder = Path(path).parent if not backend and path else Path("data")
    return f"sqlite:///{folder / 'sweeps.db'}"


def _experiment_id(client: mlflow.MlflowClient) -> str:
    """The MLflow experiment that runs of this process go to."""
    if launcher := os.environ.get("MLFLOW_RUN_ID"):
        return str(client.get_run(launcher).info.experiment_id)
    if own := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return own
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _as_table(table: Mapping[str, list[Any]]) -> dict[str, Any]:
    """A table as MLflow's page shows it; log_table would append to the one before."""
    rows = [list(row) for row in zip(*table.values(), strict=True)]
    return {"columns": list(table), "data": rows}


def draw(plan: Plan, trials: Sequence[Trial], study: optuna.Study) -> dict[str, Image.Image]:
    """The figures that the trials so far allow, drawn."""
    measured = [trial for trial in trials if trial.value is not None]
    if not measured:
        return {}
    values = [float(trial.value) for trial in measured if trial.value is not None]
    figures = {
        "history": plots.search_history(
            [trial.place + 1 for trial in measured], values, [t.state == "pruned" for t in measured]
        )
    }
    complete = [trial for trial in measured if trial.state == "complete"]
    if len(complete) > 1:
        axes = [_axis(dimension, complete) for dimension in plan.search]
        figures["parallel_coordinates"] = plots.parallel_coordinates(
            axes, [trial.value or 0.0 for trial in complete], "mAP on val"
        )
        if shares := importances(study):
            figures["importance"] = plots.importance_bars(shares)
    return {name: plots.to_image(figure) for name, figure in figures.items()}


def importances(study: optuna.Study) -> dict[str, float]:
    """Shares of the variance of mAP between trials that each field explains; {} if none varies.

    Source: Hutter et al. 2014, fANOVA.
    """
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if len({trial.value for trial in complete}) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _axis(dimension: Dimension, trials: Sequence[Trial]) -> plots.SearchAxis:
    """Where the trials lie on the axis of a dimension, with the ends and the middle named."""
    shown = dimension.values or tuple(
        dimension.low * (dimension.high / dimension.low) ** share if dimension.log
        else dimension.low + share * (dimension.high - dimension.low)
        for share in (0, 0.25, 0.5, 0.75, 1)
    )  # fmt: skip
    texts = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in shown]
    ticks = dict(zip(texts, map(dimension.share_of, shown), strict=True))
    places = [dimension.share_of(trial.params[dimension.name]) for trial in trials]
    return plots.SearchAxis(dimension.name, places, ticks)


def best_yaml(plan: Plan, best: Trial, trials: Sequence[Trial], name: str) -> str:
    """The best trial as a file of experiments/."""
    n_complete = len([trial for trial in trials if trial.state == "complete"])
    header = (
        f"# The best of {n_complete} complete trials of the sweep {name}: trial {best.place + 1}, "
        f"run {best.run}.\n# mAP {best.value:.4f} on val, by which it was chosen, so that this "
        f"figure flatters it.\n#\n#   mlflow run . -P experiment=best.yaml\n#\n"
        f"# Written {time.strftime('%Y-%m-%d')}.\n"
    )
    return header + yaml.safe_dump(plan.changed(best.params), sort_keys=False)
