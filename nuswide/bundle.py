"""The bundle: a trained network as ONNX with its labels, in the model registry and out of it.

Owns export, registration, the champion alias and loading. Never trains, and loads nothing that
could execute code.

    version = log_bundle(write_bundle(folder, model, settings, images), config.registered_model)
    tagger, version = load_tagger("models:/nuswide-tagger@champion")
"""

import base64
import io
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from nuswide import tagger
from nuswide.evaluate import torch_score
from nuswide.models import Scorer, TaggerNet
from nuswide.tagger import Tagger

CHAMPION = "champion"
_TOLERANCE = 1e-4  # between the scores of torch and of ONNX Runtime
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


def write_bundle(
    folder: Path, model: TaggerNet, settings: Mapping[str, Any], images: NDArray[np.uint8]
) -> None:
    """Write model.onnx and tagger.json, and check on real images that both engines agree.

    settings: labels, threshold, image_size_px and whatever else should travel with the model.
    images: (N, 3, S, S) uint8. Raises click.ClickException if a score differs by more than 1e-4.
    """
    folder.mkdir()
    model.cpu().eval()
    _export_onnx(model, folder / "model.onnx", settings["image_size_px"])
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tagger.json").write_text(text + "\n", encoding="utf-8")
    here = torch_score(model, torch.device("cpu"))(images)
    gap = float(np.abs(Tagger.load(folder).score(images) - here).max())
    if not gap <= _TOLERANCE:
        raise click.ClickException(
            f"the exported model's scores differ from torch's by {gap:.1e}, more than "
            f"{_TOLERANCE:.0e}; it was not registered"
        )


def _export_onnx(model: TaggerNet, path: Path, image_size_px: int) -> None:
    # The exporter tells its progress in a dozen lines that no user needs.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.zeros(2, 3, image_size_px, image_size_px, dtype=torch.uint8)
    torch.onnx.export(
        Scorer(model).eval(),
        (example,),
        path,
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )


def write_weights(path: Path, model: TaggerNet) -> None:
    """Write the network's weights for fine-tuning (`weights=FILE`), as safetensors."""
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)


@dataclass(frozen=True)
class LoggedModel:
    """A model in the record; version is its number in the registry, None if it is not there."""

    model_id: str
    uri: str
    version: str | None


def log_bundle(
    folder: Path, example: NDArray[np.uint8], registered_model: str, run_id: str
) -> LoggedModel:
    """Log a bundle to the active run as a pyfunc, and register it unless the name is `none`.

    example: an image (3, S, S) uint8 for the model's input example. A version that this run has
    registered before it was killed is taken as it is.
    """
    if found := _registered_by(run_id, registered_model):
        return found
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=tagger.__file__,
        artifacts={"bundle": str(folder)},
        signature=_signature(),
        input_example=pd.DataFrame({"image": [_as_base64(example)]}),
        pip_requirements=[f"{name}=={installed(name)}" for name in _REQUIREMENTS],
        registered_model_name=None if registered_model == "none" else registered_model,
    )
    number = info.registered_model_version
    return LoggedModel(info.model_id, info.model_uri, None if number is None else str(number))


def _registered_by(run_id: str, name: str) -> LoggedModel | None:
    run = mlflow.get_run(run_id)
    if run.info.end_time:  # it was finished, and has been trained further
        return None
    for version in mlflow.MlflowClient().search_model_versions(f"name='{name}'"):
        if version.run_id == run_id:
            return LoggedModel(model_id_of(version) or "", version.source or "", version.version)
    return None


def _signature() -> ModelSignature:
    outputs = Schema([
        ColSpec(Array(DataType.string), "labels"), ColSpec(Array(DataType.double), "scores")
    ])  # fmt: skip
    params = ParamSchema([
        ParamSpec("threshold", DataType.double, None), ParamSpec("top_k", DataType.integer, 0)
    ])  # fmt: skip
    return ModelSignature(Schema([ColSpec(DataType.string, "image")]), outputs, params)


def _as_base64(image: NDArray[np.uint8]) -> str:
    jpeg = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(jpeg, format="JPEG", quality=90)
    return base64.b64encode(jpeg.getvalue()).decode()


def describe_version(name: str, version: str, tags: Mapping[str, str]) -> bool:
    """Tag a version with its figures and make it champion if it earns that; True if it did.

    The first version does, and any later one whose `val/map` is higher than the champion's on the
    same val samples (`val_digest`).
    """
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    try:
        champion = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:  # there is none yet
        wins = True
    else:
        wins = _beats(tags, champion.tags)
    if wins:
        client.set_registered_model_alias(name, CHAMPION, version)
    return wins


def _beats(challenger: Mapping[str, str], champion: Mapping[str, str]) -> bool:
    comparable = "val_digest" in champion and challenger.get("val_digest") == champion["val_digest"]
    return comparable and float(challenger["val/map"]) > float(champion["val/map"])


def find_version(uri: str) -> ModelVersion:
    """Look up models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises click.ClickException if there is none, naming the models there are.
    """
    client = mlflow.MlflowClient()
    name, at, alias = uri.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    if not uri.startswith("models:/") or not name or not (alias if at else number):
        raise click.ClickException(
            f"model={uri!r} is no model address; give models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        if number == "latest":
            return max(client.search_model_versions(f"name='{name}'"), key=lambda v: int(v.version))
        return client.get_model_version(name, number)
    except (MlflowException, ValueError):
        known = ", ".join(model.name for model in client.search_registered_models()) or "none"
        raise click.ClickException(
            f"there is no model {uri}; registered models: {known}. `mlflow run .` makes one"
        ) from None


def load_tagger(version: ModelVersion) -> Tagger:
    """Download a registered version's bundle and open it; none of the model's code is run."""
    local = mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}")
    return Tagger.load(Path(local) / "artifacts" / "bundle")


def model_id_of(version: ModelVersion) -> str | None:
    """The id of the logged model behind a version; a version reached by alias lacks it."""
    return version.model_id or (version.source or "").rpartition("/")[2] or None


def serve_model(uri: str, host: str, port: int) -> None:
    """Become `mlflow models serve` for a registered model, once it and the port are there."""
    find_version(uri)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise click.ClickException(
                f"cannot listen on {host}:{port} ({error.strerror}); give another port"
            ) from error
    arguments = [
        "models",
        "serve",
        "-m",
        uri,
        "--env-manager",
        "local",
        "-h",
        host,
        "-p",
        str(port),
    ]
    # `mlflow run` waits for the server's end, but is often killed with it: end its run beforehand.
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        mlflow.MlflowClient().set_terminated(run_id)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])
