"""Runs in MLflow, and what is written into them.

Owns start_run, which ends every run that it begins, and Run, which writes metrics to the outbox
first. Computes nothing that it records.
"""

import io
import json
import logging
import math
import os
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import mlflow
import pandas as pd
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE
from PIL import Image

from nuswide.config import Config
from nuswide.data.manifest import Manifest
from nuswide.tracking.environment import environment, patch_digest, uncommitted_patch
from nuswide.tracking.outbox import Outbox
from nuswide.tracking.store import open_store

JOB_TAG = "nuswide.job"
# MLflow's progress bars and its warnings about pip hide a run's own lines.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
# MLflow retries for a minute; the outbox retries for longer.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
CHECKPOINTS = "checkpoint"  # the folder of a run's artifacts with its state
_TIMEOUT_S = 60.0
_MOST_PATCH_CHARS = 1_000_000
_AGAIN = "some of the metrics are lost; repeat the command"
_MADE_UP_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")


class ManifestDataset(MetaDataset):
    """One split of a manifest as an MLflow data set; its profile is its counts."""

    def __init__(self, manifest: Manifest, name: str) -> None:
        self._counts = {"images": len(manifest), "labels": len(manifest.labels)}
        source = LocalArtifactDatasetSource(str(manifest.root.resolve()))
        super().__init__(source, name=name, digest=manifest.digest)

    @property
    def profile(self) -> dict[str, int]:
        """Return the numbers of images and labels."""
        return self._counts

    def to_dict(self) -> dict[str, str]:
        """Return the data set as MLflow stores it."""
        return {**super().to_dict(), "profile": json.dumps(self.profile)}


class Run:
    """One active MLflow run; metrics that are not finite are not recorded."""

    def __init__(
        self,
        active: mlflow.ActiveRun,
        outbox: Outbox,
        *,
        is_extended: bool = False,
        is_trial: bool = False,
    ) -> None:
        self.is_extended = is_extended  # it was finished before, and is resumed with more epochs
        self.is_trial = is_trial  # as of a sweep: nothing is drawn or exported
        self.id: str = active.info.run_id
        self.name: str = active.info.run_name
        self.experiment_id: str = active.info.experiment_id
        self._client = mlflow.MlflowClient()
        self._outbox = outbox
        self._recorded = set(active.data.params)
        self._datasets: dict[str, MetaDataset] = {}

    @property
    def address(self) -> str:
        """Where MLflow's page shows the run."""
        return page_address(self.experiment_id, self.id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record params, except those that `mlflow run` has recorded already, as typed."""
        missing = [Param(k, str(v)) for k, v in params.items() if k not in self._recorded]
        self._client.log_batch(self.id, params=missing)
        self._recorded |= set(params)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self._client.log_batch(self.id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Add metrics to the outbox, which sends them once they are committed."""
        now_ms = round(time.time() * 1000)
        self._outbox.add_metrics(
            Metric(key, float(value), now_ms, step)
            for key, value in metrics.items()
            if math.isfinite(value)
        )

    def mark(self) -> int:
        """Write all that was logged to disk; return the position of its end."""
        try:
            return self._outbox.mark()
        except OSError as error:
            raise click.ClickException(
                f"cannot write the metrics to disk ({error.strerror}); free some space, and resume"
            ) from error

    def commit(self, mark: int, checkpoint: Path | None = None) -> None:
        """Allow everything before a mark to be sent, with the checkpoint that covers it."""
        self._outbox.commit(mark)
        if checkpoint:
            self._outbox.send_file(checkpoint, CHECKPOINTS)

    def close(self) -> bool:
        """Send the rest, and wait for it, at most a minute; return whether all is recorded."""
        self._outbox.commit(self._outbox.mark())
        return self._outbox.close(_TIMEOUT_S)

    def log_dataset(self, manifest: Manifest, split: str) -> None:
        """Record the samples of a split as an input of the run, with their digest."""
        name = f"{_folder_name(manifest.root)}-{split}"
        self._datasets[split] = ManifestDataset(manifest, name)
        try:
            mlflow.log_input(self._datasets[split], context=split)
        except MlflowException:
            # MLflow looks for a data set, then adds it: another run has just added it.
            mlflow.log_input(self._datasets[split], context=split)
        self.set_tags({f"data.{split}_digest": manifest.digest})

    def log_result(
        self, metrics: Mapping[str, float], *, split: str, step: int, model_id: str | None
    ) -> None:
        """Record metrics, linked to the model and to the split that they were measured on."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        # A run that was killed while it recorded its result has some of them.
        recorded = {m.key: (m.step, m.value) for m in self._latest()}
        finite = {key: value for key, value in finite.items() if recorded.get(key) != (step, value)}
        mlflow.log_metrics(finite, step=step, model_id=model_id, dataset=self._datasets[split])

    def _latest(self) -> list[Metric]:
        latest: list[Metric] = self._client.get_run(self.id).data._metric_objs
        return latest

    def log_picture(self, image: Image.Image, name: str) -> None:
        """Record an image as the artifact `name`."""
        mlflow.log_image(image, name)

    def log_image(self, image: Image.Image, key: str, *, step: int) -> None:
        """Add an image with a step to the outbox, for the step slider of MLflow's page."""
        png = io.BytesIO()
        image.save(png, format="png")
        self._outbox.add_picture(png.getvalue(), key, step=step)

    def log_table(self, columns: Mapping[str, list[Any]], name: str) -> None:
        """Record columns as a table; MLflow shows tables of one name side by side across runs."""
        folder = name.rpartition("/")[0] or None
        if name in {file.path for file in self._client.list_artifacts(self.id, folder)}:
            rows = [list(row) for row in zip(*columns.values(), strict=True)]
            mlflow.log_dict({"columns": list(columns), "data": rows}, name)  # log_table appends
        else:
            mlflow.log_table(pd.DataFrame(columns), name)

    def log_text(self, text: str, name: str) -> None:
        """Record a text as the artifact `name`."""
        mlflow.log_text(text, name)

    def log_file(self, path: Path, folder: str) -> None:
        """Record a file under `folder`."""
        mlflow.log_artifact(str(path), folder)

    def set_note(self, markdown: str) -> None:
        """Set the text on the run's page."""
        self.set_tags({MLFLOW_RUN_NOTE: markdown})


def page_address(experiment_id: str, run_id: str) -> str:
    """Return the address of a run on MLflow's page, in its view for model training."""
    tracker = mlflow.get_tracking_uri()
    is_server = tracker.startswith(("http://", "https://"))
    base = tracker if is_server else "`mlflow ui` shows it at http://127.0.0.1:5000"
    page = f"/#/experiments/{experiment_id}/runs/{run_id}"
    return f"{base.rstrip('/')}{page}?workflowType=machine_learning"


def _folder_name(root: Path) -> str:
    """Return a data set's name: that of its folder, not of the images' folder inside."""
    root = root.resolve()
    return root.parent.name if root.name == "images" else root.name


class NullRun:
    """A Run that records nothing, for the processes that are not the main one."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


@contextmanager
def start_run(
    job: str,
    name: str,
    *,
    run_id: str | None = None,
    outbox: Path | None = None,
    mark: int = 0,
    is_trial: bool = False,
) -> Iterator[Run]:
    """Begin a run, or join the one that `mlflow run` has begun, and end it in any case.

    It ends FINISHED, FAILED on an error, or KILLED if it is interrupted or ended early; all of the
    outbox is sent.
    name: replaces a name that MLflow generated, but not one that the user gave. run_id: an earlier
    run to resume. outbox: the folder of outboxes. mark: the end of what a checkpoint covers.
    is_trial: see Run. Raises TrackingUnavailable if the server does not answer at the end.
    """
    open_store()
    is_extended = _is_finished(run_id) if run_id else False
    active = _start(run_id)
    status = RunStatus.FAILED
    with scratch_folder() as scratch:
        own_outbox = _open_outbox(outbox or scratch, active.info.run_id, mark)
        run = Run(active, own_outbox, is_extended=is_extended, is_trial=is_trial)
        try:
            _name(run, active, name)
            run.set_tags({JOB_TAG: job, **environment()})
            _log_patch(run)
            yield run
            status = RunStatus.FINISHED
        except (KeyboardInterrupt, EndedEarly):
            status = RunStatus.KILLED
            raise
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            hint = f"; the training is saved: {_later(run.id, outbox)} records it" if outbox else ""
            raise TrackingUnavailable(f"MLflow: {reason}{hint}") from error
        finally:
            failure = _end(run, RunStatus.to_string(status))
            rest = f"{_later(run.id, outbox)} records the rest" if outbox else _AGAIN
            if failure and status == RunStatus.KILLED:
                click.echo(f"{failure}; {rest}", err=True)
        if failure:
            raise TrackingUnavailable(f"{failure}; {rest}")


def _open_outbox(folder: Path, run_id: str, mark: int) -> Outbox:
    """Open the outbox of the active run; end the run if that fails."""
    try:
        return Outbox(folder / run_id, run_id, keep_bytes=mark)
    except BaseException as error:
        mlflow.end_run(RunStatus.to_string(RunStatus.FAILED))
        if isinstance(error, OSError):
            raise click.ClickException(
                f"cannot write into {folder} ({error.strerror}); give another checkpoints=DIR"
            ) from error
        raise


def _log_patch(run: Run) -> None:
    """Record the uncommitted changes of the package, unless they are too large to be read."""
    patch = uncommitted_patch()
    if 0 < len(patch) <= _MOST_PATCH_CHARS:
        run.log_text(patch, f"git/{patch_digest(patch)}.patch")


def _later(run_id: str, outbox: Path) -> str:
    """Return the command that sends what is left in an outbox."""
    is_default = outbox == Path(Config.checkpoints)
    return shlex.join(
        ["nuswide", "upload", run_id, *([] if is_default else ["--checkpoints", str(outbox)])]
    )


def _start(run_id: str | None) -> mlflow.ActiveRun:
    try:
        return mlflow.start_run(run_id=run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        # MLflow looks for the experiment, then creates it: another run has just created it.
        return mlflow.start_run(run_id=run_id)


def _is_finished(run_id: str) -> bool:
    return bool(mlflow.get_run(run_id).info.status == "FINISHED")


def is_open(run_id: str) -> bool:
    """Whether this tracking store has a run that is not FINISHED."""
    try:
        return not _is_finished(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # it is in another store
            return False
        raise


def naming_tags(before: str, name: str) -> dict[str, str]:
    """Return the tags that replace a run's name, none unless MLflow generated it."""
    return {MLFLOW_RUN_NAME: name} if _MADE_UP_NAME.fullmatch(before) else {}


def _name(run: Run, active: mlflow.ActiveRun, name: str) -> None:
    """Name a run; if it is resumed by `mlflow run`, also the run which that has begun."""
    if tags := naming_tags(active.info.run_name, name):
        run.name = name
        run.set_tags(tags)
    launcher = os.environ.get("MLFLOW_RUN_ID", run.id)
    if launcher != run.id:
        tags = {
            JOB_TAG: "resume", MLFLOW_RUN_NAME: f"resume of {active.info.run_name}",
            MLFLOW_PARENT_RUN_ID: run.id, MLFLOW_RUN_NOTE: f"Goes on with run {run.id}.",
        }  # fmt: skip
        client = mlflow.MlflowClient()
        client.log_batch(launcher, tags=[RunTag(k, v) for k, v in tags.items()])


class EndedEarly(Exception):
    """Training is ended before its last epoch, without an error."""


class TrackingUnavailable(click.ClickException):
    """The tracking server does not answer, or not in time."""


def _end(run: Run, status: str) -> str | None:
    """Send the rest and end a run; return what failed, None if nothing did."""
    arrived = run.close()
    try:
        mlflow.end_run(status)
    except (MlflowException, OSError) as error:
        return f"the tracking server does not answer ({str(error).splitlines()[0]})"
    return None if arrived else "the tracking server did not take all metrics"


def send_outbox(run_id: str, folder: Path, mark: int) -> None:
    """Send the outbox of a stopped run up to a mark, and end the run as KILLED.

    Raises TrackingUnavailable if the server does not answer.
    """
    outbox = Outbox(folder / run_id, run_id, keep_bytes=mark)
    outbox.commit(outbox.mark())
    if not outbox.close(_TIMEOUT_S):
        raise TrackingUnavailable(
            f"the tracking server {mlflow.get_tracking_uri()} does not answer"
        )
    mlflow.MlflowClient().set_terminated(run_id, "KILLED")


def fetch_checkpoint(run_id: str, folder: Path) -> None:
    """Download a run's last checkpoint into a folder.

    Raises click.ClickException if the run has none.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        try:
            found = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=CHECKPOINTS, dst_path=scratch
            )
        except (MlflowException, OSError) as error:
            raise click.ClickException(
                f"there is no checkpoint of run {run_id} in {folder.parent}, and none in the run's "
                "artifacts; give resume=auto, or checkpoints=DIR with the folder it was trained in"
            ) from error
        Path(found).replace(folder)


def amend_note(run_id: str, text: str, *, name: str, summary: str) -> None:
    """Add a text to a finished run as the artifact `name`, and put its summary above the note."""
    client = mlflow.MlflowClient()
    client.log_text(run_id, text, name)
    note = client.get_run(run_id).data.tags.get(MLFLOW_RUN_NOTE, "")
    client.set_tag(run_id, MLFLOW_RUN_NOTE, f"{summary}\n\n{note}")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder for files that are to be recorded."""
    with tempfile.TemporaryDirectory(prefix="nuswide-") as folder:
        yield Path(folder)
