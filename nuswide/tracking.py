"""The record of a run: the writer to MLflow.

Owns start_run and Run, which buffers metrics and ends every run that it began. Computes nothing
that it records.

    with start_run("train", "sample lr=1e-4") as run:
        run.log_params({"lr": 1e-4})
        run.log_metrics({"train/loss": 0.7}, step=0)
"""

import io
import json
import logging
import math
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from matplotlib.figure import Figure
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME
from PIL import Image

from nuswide.manifest import Manifest

JOB_TAG = "nuswide.job"
# MLflow's own progress and its remark on pip drown what a run has to say.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
_BATCH = 1000  # the most that one log_batch call takes
_MADE_UP_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")


class ManifestDataset(MetaDataset):
    """One split of a manifest as an MLflow data set, with its counts as the profile."""

    def __init__(self, manifest: Manifest, name: str) -> None:
        self._counts = {"images": len(manifest), "labels": len(manifest.labels)}
        source = LocalArtifactDatasetSource(str(manifest.root.resolve()))
        super().__init__(source, name=name, digest=manifest.digest)

    @property
    def profile(self) -> dict[str, int]:
        """How many images and labels there are."""
        return self._counts

    def to_dict(self) -> dict[str, str]:
        """Describe the data set as MLflow stores it."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


class Run:
    """One active MLflow run; figures that are not finite are left out of the record."""

    def __init__(self, active: mlflow.ActiveRun) -> None:
        self.id: str = active.info.run_id
        self.experiment_id: str = active.info.experiment_id
        self._client = mlflow.MlflowClient()
        self._metrics: list[Metric] = []
        self._recorded = set(active.data.params)
        self._datasets: dict[str, MetaDataset] = {}

    @property
    def address(self) -> str:
        """Where MLflow's page shows the run; in its view for training, which is not the first."""
        tracker = mlflow.get_tracking_uri()
        is_server = tracker.startswith(("http://", "https://"))
        base = tracker if is_server else "`mlflow ui` shows it at http://127.0.0.1:5000"
        page = f"/#/experiments/{self.experiment_id}/runs/{self.id}"
        return f"{base.rstrip('/')}{page}?workflowType=machine_learning"

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record params, less those that `mlflow run` has recorded as they were typed."""
        missing = [Param(k, str(v)) for k, v in params.items() if k not in self._recorded]
        self._client.log_batch(self.id, params=missing)
        self._recorded |= set(params)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self._client.log_batch(self.id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Put metrics into the buffer, which flush() writes."""
        now_ms = round(time.time() * 1000)
        self._metrics += [
            Metric(key, float(value), now_ms, step)
            for key, value in metrics.items()
            if math.isfinite(value)
        ]

    def flush(self) -> None:
        """Write the buffered metrics."""
        for start in range(0, len(self._metrics), _BATCH):
            self._client.log_batch(self.id, metrics=self._metrics[start : start + _BATCH])
        self._metrics.clear()

    def log_dataset(self, manifest: Manifest, split: str) -> None:
        """Record the samples of a split as an input of the run, with their digest."""
        name = f"{_folder_name(manifest.root)}-{split}"
        self._datasets[split] = ManifestDataset(manifest, name)
        mlflow.log_input(self._datasets[split], context=split)
        self.set_tags({f"data.{split}_digest": manifest.digest})

    def log_result(
        self, metrics: Mapping[str, float], *, split: str, step: int, model_id: str | None
    ) -> None:
        """Record figures, tied to the model and to the logged split that they were measured on."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        mlflow.log_metrics(finite, step=step, model_id=model_id, dataset=self._datasets[split])

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a figure as the artifact `name`."""
        mlflow.log_figure(figure, name)

    def log_image(self, figure: Figure, key: str, *, step: int) -> None:
        """Record a figure as a picture with a step, for the step slider of MLflow's page."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        mlflow.log_image(Image.open(png), key=key, step=step)

    def log_table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Record columns as a table; tables of one name are shown side by side across runs."""
        mlflow.log_table(pd.DataFrame(columns), name)

    def log_text(self, text: str, name: str) -> None:
        """Record a text as the artifact `name`."""
        mlflow.log_text(text, name)

    def log_file(self, path: Path, folder: str) -> None:
        """Record a file under `folder`."""
        mlflow.log_artifact(str(path), folder)

    def set_note(self, markdown: str) -> None:
        """Set the text that stands on the run's page."""
        self.set_tags({"mlflow.note.content": markdown})


def _folder_name(root: Path) -> str:
    """A data set's name: its folder's, not that of the pictures inside."""
    root = root.resolve()
    return root.parent.name if root.name == "images" else root.name


@contextmanager
def start_run(job: str, name: str) -> Iterator[Run]:
    """Begin a run, or join the one that `mlflow run` has begun, and end it whatever happens.

    It ends FINISHED, FAILED on an error, or KILLED on an interrupt; what is buffered is written.
    name: takes the place of a name that MLflow made up, but not of one that the user gave.
    """
    active = mlflow.start_run()
    run = Run(active)
    status = RunStatus.FAILED
    try:
        if _MADE_UP_NAME.fullmatch(active.info.run_name):
            run.set_tags({MLFLOW_RUN_NAME: name})
        run.set_tags({JOB_TAG: job, **_environment()})
        yield run
        status = RunStatus.FINISHED
    except KeyboardInterrupt:
        status = RunStatus.KILLED
        raise
    finally:
        try:
            run.flush()
        finally:
            mlflow.end_run(RunStatus.to_string(status))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for files on their way into the record."""
    with tempfile.TemporaryDirectory(prefix="nuswide-") as folder:
        yield Path(folder)


def _environment() -> dict[str, str]:
    """Hardware and versions, as tags."""
    import torch

    tags = {
        "hardware.cpu": _cpu_name(),
        "hardware.cores": str(os.cpu_count()),
        "software.python": platform.python_version(),
        "software.torch": torch.__version__,
        "software.mlflow": mlflow.__version__,
    }
    if torch.cuda.is_available():
        tags["hardware.gpu"] = torch.cuda.get_device_name()
    if (changes := _git("status", "--porcelain")) is not None:
        tags["git.uncommitted_changes"] = str(bool(changes)).lower()
        tags["mlflow.source.git.commit"] = _git("rev-parse", "HEAD") or "none"
    return tags


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str | None:
    """Ask git about this package's checkout; None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
