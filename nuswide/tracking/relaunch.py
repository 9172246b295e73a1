"""The command that continues the work of this process, for messages.

Owns the look-up of the `mlflow run` that started the process. Starts nothing.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENTRY_POINT, MLFLOW_PROJECT_ENV

from nuswide.tracking.reader import find_run


@dataclass(frozen=True)
class Launcher:
    """The `mlflow run` that started this process.

    params: as given or by default, quoted for a shell, as MLflow records them.
    """

    entry_point: str
    env_manager: str
    params: Mapping[str, str]

    def command(self, **changes: str) -> str:
        """Return its command line, with changed or further params."""
        entry = "" if self.entry_point == "main" else f"-e {self.entry_point} "
        params = {**self.params, **changes}
        given = " ".join(f"-P {name}={value}" for name, value in params.items())
        return f"mlflow run . {entry}--env-manager {self.env_manager} {given}"


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
    env_manager = tags.get(MLFLOW_PROJECT_ENV, "local")
    return Launcher(tags[MLFLOW_PROJECT_ENTRY_POINT], env_manager, run.data.params)


def same_command(launcher: Launcher | None) -> str:
    """Return the command that started this process."""
    return launcher.command() if launcher else f"nuswide {shlex.join(sys.argv[1:])}"


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
