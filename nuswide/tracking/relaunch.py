"""The command that continues the work of this process, for messages.

Owns the look-up of the `mlflow run` that started the process. Starts nothing.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_PROJECT_ENV,
    MLFLOW_SOURCE_NAME,
)

from nuswide.tracking.reader import experiment_name, find_run


@dataclass(frozen=True)
class Launcher:
    """The `mlflow run` that started this process.

    params: as given or by default, quoted for a shell, as MLflow records them. project: its folder
    or URI. version: its commit, if MLflow has fetched it. experiment: name of the MLflow
    experiment, empty for the default one.
    """

    entry_point: str
    env_manager: str
    params: Mapping[str, str]
    project: str = "."
    version: str = ""
    experiment: str = ""

    def command(self, **changes: str) -> str:
        """Return its command line, with changed or further params."""
        options = {
            "-v": self.version,
            "--experiment-name": self.experiment,
            "-e": "" if self.entry_point == "main" else self.entry_point,
            "--env-manager": self.env_manager,
        }
        words = ["mlflow", "run", shlex.quote(self.project)]
        words += [f"{k} {shlex.quote(value)}" for k, value in options.items() if value]
        words += [f"-P {name}={value}" for name, value in {**self.params, **changes}.items()]
        return " ".join(words)


def find_launcher() -> Launcher | None:
    """Return the `mlflow run` that started this process; None if another program did.

    Call it before the run is joined: MLflow then removes the variable with its ID.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id or (run := find_run(run_id)) is None:
        return None
    tags = run.data.tags
    if MLFLOW_PROJECT_ENTRY_POINT not in tags:  # a variable that the user has set
        return None
    project = _readable(tags.get(MLFLOW_SOURCE_NAME, "."))
    return Launcher(
        tags[MLFLOW_PROJECT_ENTRY_POINT],
        tags.get(MLFLOW_PROJECT_ENV, "local"),
        run.data.params,
        project,
        "" if os.path.exists(project) else tags.get(MLFLOW_GIT_COMMIT, ""),
        experiment_name(run.info.experiment_id),
    )


def _readable(source: str) -> str:
    """Return a local folder as its path; MLflow records `file://REPOSITORY#FOLDER`."""
    repository, _, folder = source.partition("#")
    if not repository.startswith("file://"):
        return source
    return os.path.join(repository.removeprefix("file://"), folder).rstrip("/")


def same_command(launcher: Launcher | None) -> str:
    """Return the command that started this process."""
    return launcher.command() if launcher else f"nuswide {shlex.join(sys.argv[1:])}"


def train_command(launcher: Launcher | None, experiment: str) -> str:
    """Return the command that trains an experiment file, in the way this process was started."""
    if launcher is None:
        return f"nuswide train --experiment {experiment}"
    return replace(launcher, entry_point="main", params={}).command(experiment=experiment)


def way_on(run_id: str, launcher: Launcher | None) -> str:
    """Return what to do after an interrupt: to resume a training run, or to start again."""
    if sys.argv[1:2] != ["train"]:  # sweep and upload continue, and reproduce starts again
        return f"repeat with\n  {same_command(launcher)}"
    if launcher:
        return f"resume with\n  {launcher.command(resume=run_id)}"
    given = sys.argv[1:]
    if "--resume" in given:
        at = given.index("--resume")
        given = given[:at] + given[at + 2 :]
    return f"resume with\n  nuswide {shlex.join(given)} --resume {run_id}"
