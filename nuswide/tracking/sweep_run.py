"""A sweep in MLflow: a parent run with a child run for each trial.

Owns their tags, and the calls of MLflow that only sweeps need. Decides nothing about trials.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import mlflow
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from nuswide.tracking.environment import environment
from nuswide.tracking.parent_run import ParentRun, current_experiment
from nuswide.tracking.reader import find_run
from nuswide.tracking.run import JOB_TAG

_STUDY_TAG, _TRIAL_TAG, _STATE_TAG = "sweep.study", "sweep.trial", "sweep.state"


class SweepRun(ParentRun):
    """The parent run of a study, which all of its workers share."""

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
        experiment = current_experiment(client)
        found = client.search_runs([experiment], f"tags.`{_STUDY_TAG}` = '{key}'", max_results=1)
        if found:  # its worker was killed before it recorded the run in the study
            return cls(found[0])
        tags = resolve_tags({_STUDY_TAG: key, JOB_TAG: "sweep", **environment()})
        return cls(client.create_run(experiment, tags=tags, run_name=name))

    def begin_trial(self, number: int, params: Mapping[str, Any]) -> str:
        """Create the run of a trial; return its ID. number: counted from 1."""
        name = f"trial {number} {' '.join(f'{k}={v}' for k, v in params.items())}"
        return self.begin_child(name, {_TRIAL_TAG: str(number)})

    def metric_of(self, trial_run: str, key: str) -> float | None:
        """Return a metric of a finished trial; None while it is not finished."""
        run = self._client.get_run(trial_run)
        return run.data.metrics.get(key) if run.info.status == "FINISHED" else None

    def end_trial(self, trial_run: str, state: str) -> None:
        """Record the state of a trial in its run, and end the run as KILLED if it still runs."""
        self._client.set_tag(trial_run, _STATE_TAG, state)
        self.end_child(trial_run)

    def end_abandoned_trials(self) -> None:
        """End the runs of trials whose workers have died; call it when no trial is running."""
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.id}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs(
            [self._experiment], f"{query} and tags.`{_TRIAL_TAG}` LIKE '%'"
        ):
            self.end_trial(run.info.run_id, "given up")


def default_storage() -> str:
    """Return the URL of a file beside the tracking store if that is a file, else in data/."""
    backend, _, path = mlflow.get_tracking_uri().partition("sqlite:///")
    folder = Path(path).parent if not backend and path else Path("data")
    return f"sqlite:///{folder / 'sweeps.db'}"
