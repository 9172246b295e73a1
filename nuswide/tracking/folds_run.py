"""The folds of one experiment in MLflow: a parent run with a child run for each fold.

Owns their tags. Decides nothing about folds.
"""

import os

import mlflow
from mlflow.entities import RunTag
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from nuswide.tracking.environment import environment
from nuswide.tracking.parent_run import ParentRun, current_experiment
from nuswide.tracking.reader import RecordedRun, search_runs
from nuswide.tracking.run import JOB_TAG, naming_tags

_KEY_TAG, _FOLD_TAG = "folds.key", "folds.fold"


class FoldsRun(ParentRun):
    """The parent run of folds."""

    @classmethod
    def join(cls, key: str, name: str) -> "FoldsRun":
        """Find the run of the folds with this key, or begin it; the caller holds their lock.

        If `mlflow run` has begun a run, that becomes the new parent.
        """
        client = mlflow.MlflowClient()
        experiment = current_experiment(client)
        tags = {_KEY_TAG: key, JOB_TAG: "folds", **environment()}
        found = client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{key}'", max_results=1)
        if found:
            parent = cls(found[0])
        elif launcher := os.environ.get("MLFLOW_RUN_ID"):
            run = client.get_run(launcher)
            tags |= naming_tags(run.info.run_name, name)
            client.log_batch(launcher, tags=[RunTag(k, v) for k, v in tags.items()])
            parent = cls(run)
        else:
            parent = cls(client.create_run(experiment, tags=resolve_tags(tags), run_name=name))
        parent.adopt_launcher("folds", f"Goes on with the folds of run {parent.id}.")
        return parent

    def latest(self) -> dict[int, RecordedRun]:
        """Return the latest run of each fold that has one, by fold."""
        query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.id}' and tags.`{_FOLD_TAG}` LIKE '%'"
        runs = list(search_runs([self._experiment], query))
        return {int(run.data.tags[_FOLD_TAG]): run for run in reversed(runs)}

    def begin_fold(self, fold: int, name: str) -> str:
        """Create the run of a fold; return its ID."""
        return self.begin_child(name, {_FOLD_TAG: str(fold)})
