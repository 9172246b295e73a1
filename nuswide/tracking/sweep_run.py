"""A sweep in MLflow: a parent run with a child run for each trial.

Owns the calls of MLflow for both, and their tags. Decides nothing about trials.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import mlflow
from mlflow.entities import Param, RunStatus, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from PIL import Image

from nuswide.tracking.environment import environment
from nuswide.tracking.reader import RecordedRun, find_run
from nuswide.tracking.run import JOB_TAG, page_address

_STUDY_TAG, _TRIAL_TAG, _STATE_TAG = "sweep.study", "sweep.trial", "sweep.state"
_MOST_PARAM_CHARS = 6000  # of a value, MLflow's limit


class SweepRun:
    """The parent run of a study, which all of its workers share."""

    def __init__(self, run: RecordedRun) -> None:
        self.id: str = run.info.run_id
        self._experiment: str = run.info.experiment_id
        self._client = mlflow.MlflowClient()

    @classmethod
    def join(cls, key: str, run_id: str | None, name: str) -> "SweepRun":
        """Find the study's run, or begin it; the caller holds the study's lock.

        key: the study's own. run_id: the run's, None if no worker has recorded one. Raises
        click.ClickException if the run is in another tracking store.
        """
        client = mlflow.MlflowClient()
        if run_id:
            if (run := find_run(run_id)) is None:
                raise click.ClickException(
                    f"the study's run {run_id} is not in {mlflow.get_tracking_uri()}; set "
                    "MLFLOW_TRACKING_URI to the tracking server of its other workers"
                )
            return cls(run)
        experiment = _experiment_id(client)
        found = client.search_runs([experiment], f"tags.`{_STUDY_TAG}` = '{key}'", max_results=1)
        if found:  # its worker was killed before it recorded the run in the study
            return cls(found[0])
        tags = resolve_tags({_STUDY_TAG: key, JOB_TAG: "sweep", **environment()})
        return cls(client.create_run(experiment, tags=tags, run_name=name))

    @property
    def address(self) -> str:
        """Where MLflow's page shows the run."""
        return page_address(self._experiment, self.id)

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        return str(self._client.get_run(self.id).info.status)

    def set_status(self, status: str) -> None:
        """End the run, or set it to RUNNING again."""
        if RunStatus.is_terminated(RunStatus.from_string(status)):
            self._client.set_terminated(self.id, status)
        else:
            self._client.update_run(self.id, status)

    def adopt_launcher(self) -> None:
        """Tag the run that `mlflow run` has begun as one of this sweep's worker."""
        if launcher := os.environ.pop("MLFLOW_RUN_ID", None):
            tags = {
                JOB_TAG: "sweep worker", MLFLOW_PARENT_RUN_ID: self.id,
                MLFLOW_RUN_NOTE: f"A worker of the sweep {self.id}.",
            }  # fmt: skip
            self._client.log_batch(launcher, tags=[RunTag(k, v) for k, v in tags.items()])

    def begin_trial(self, number: int, params: Mapping[str, Any]) -> str:
        """Create the run of a trial; return its ID. number: counted from 1."""
        name = f"trial {number} {' '.join(f'{k}={v}' for k, v in params.items())}"
        tags = resolve_tags({MLFLOW_PARENT_RUN_ID: self.id, _TRIAL_TAG: str(number)})
        return str(self._client.create_run(self._experiment, tags=tags, run_name=name).info.run_id)

    def metric_of(self, trial_run: str, key: str) -> float | None:
        """Return a metric of a finished trial; None while it is not finished."""
        run = self._client.get_run(trial_run)
        return run.data.metrics.get(key) if run.info.status == "FINISHED" else None

    def end_trial(self, trial_run: str, state: str) -> None:
        """Record the state of a trial in its run, and end the run as KILLED if it still runs."""
        self._client.set_tag(trial_run, _STATE_TAG, state)
        if self._client.get_run(trial_run).info.status == "RUNNING":
            self._client.set_terminated(trial_run, "KILLED")

    def end_abandoned_trials(self) -> None:
        """End the runs of trials whose workers have died; call it when no trial is running."""
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.id}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs(
            [self._experiment], f"{query} and tags.`{_TRIAL_TAG}` LIKE '%'"
        ):
            self.end_trial(run.info.run_id, "given up")

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record those params that the run does not have yet."""
        recorded = self._client.get_run(self.id).data.params
        missing = [Param(k, v[:_MOST_PARAM_CHARS]) for k, v in params.items() if k not in recorded]
        self._client.log_batch(self.id, params=missing)

    def log_table(self, table: Mapping[str, list[Any]], name: str) -> None:
        """Record a table in place of the one before, to which mlflow.log_table would append."""
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        self._client.log_dict(self.id, {"columns": list(table), "data": rows}, name)
        # MLflow's page shows an artifact as a table if this tag says so.
        shown = json.dumps([{"path": name, "type": "table"}])
        self._client.set_tag(self.id, MLFLOW_LOGGED_ARTIFACTS, shown)

    def log_metric(self, key: str, value: float, *, step: int) -> None:
        """Record a metric."""
        self._client.log_metric(self.id, key, value, step=step)

    def log_picture(self, image: Image.Image, name: str) -> None:
        """Record an image as the artifact `name`."""
        self._client.log_image(self.id, image, name)

    def log_text(self, text: str, name: str) -> None:
        """Record a text as the artifact `name`."""
        self._client.log_text(self.id, text, name)

    def set_note(self, markdown: str) -> None:
        """Set the text on the run's page."""
        self._client.set_tag(self.id, MLFLOW_RUN_NOTE, markdown)


def default_storage() -> str:
    """Return the URL of a file beside the tracking store if that is a file, else in data/."""
    backend, _, path = mlflow.get_tracking_uri().partition("sqlite:///")
    folder = Path(path).parent if not backend and path else Path("data")
    return f"sqlite:///{folder / 'sweeps.db'}"


def _experiment_id(client: mlflow.MlflowClient) -> str:
    """Return the ID of the MLflow experiment that runs of this process go to."""
    if launcher := os.environ.get("MLFLOW_RUN_ID"):
        return str(client.get_run(launcher).info.experiment_id)
    if own := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return own
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))
