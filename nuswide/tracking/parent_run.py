"""A run in MLflow that has child runs: that of a sweep, or of folds.

Owns the calls of MLflow for what it records. Decides nothing about the children.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Param, RunStatus, RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from PIL import Image

from nuswide.tracking.reader import RecordedRun
from nuswide.tracking.run import JOB_TAG, page_address

_MOST_PARAM_CHARS = 6000  # of a value, MLflow's limit


class ParentRun:
    """A run that records what its child runs have in common."""

    def __init__(self, run: RecordedRun) -> None:
        self.id: str = run.info.run_id
        self._experiment: str = run.info.experiment_id
        self._client = mlflow.MlflowClient()

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

    def adopt_launcher(self, job: str, note: str) -> None:
        """Tag the run that `mlflow run` has begun as a child of this one, unless it is this one."""
        launcher = os.environ.pop("MLFLOW_RUN_ID", self.id)
        if launcher != self.id:
            tags = {JOB_TAG: job, MLFLOW_PARENT_RUN_ID: self.id, MLFLOW_RUN_NOTE: note}
            self._client.log_batch(launcher, tags=[RunTag(k, v) for k, v in tags.items()])

    def begin_child(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a child run; return its ID."""
        own = resolve_tags({MLFLOW_PARENT_RUN_ID: self.id, **tags})
        return str(self._client.create_run(self._experiment, tags=own, run_name=name).info.run_id)

    def end_child(self, run_id: str) -> None:
        """End a child run as KILLED if it still runs."""
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, "KILLED")

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


def current_experiment(client: mlflow.MlflowClient) -> str:
    """Return the ID of the MLflow experiment that runs of this process go to."""
    if launcher := os.environ.get("MLFLOW_RUN_ID"):
        return str(client.get_run(launcher).info.experiment_id)
    if own := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return own
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))
