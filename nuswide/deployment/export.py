"""The bundle: a trained network as ONNX with its labels and its card.

Owns export and registration. Never trains, and writes nothing that could execute code.

    write_bundle(folder, model, settings, decision, images)
    logged = log_bundle(folder, images[0], config.registered_model, run.id, card)
"""

import base64
import copy
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from nuswide import tagger
from nuswide.evaluation.evaluate import Decision, torch_score
from nuswide.evaluation.model_card import without_labels
from nuswide.models.networks import Scorer, TaggerNet
from nuswide.tagger import Tagger
from nuswide.tracking.reader import file_digest
from nuswide.tracking.registry import model_id_of

_TOLERANCE = 1e-4  # between the scores of torch and of ONNX Runtime
_LEAST_GROUP = 16  # channels in a convolution's group
_MOST_DESCRIBED = 4000  # characters; the registry's page takes 5,000
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


def write_bundle(
    folder: Path,
    model: TaggerNet,
    settings: Mapping[str, Any],
    decision: Decision,
    images: NDArray[np.uint8],
) -> None:
    """Write model.onnx and tagger.json, and check on real images that both engines agree.

    settings: labels, image_size_px and whatever else should travel with the model. decision: what
    is made of its scores. images: (N, 3, S, S) uint8. Raises click.ClickException if a score
    differs by more than 1e-4.
    """
    folder.mkdir()
    model.cpu().eval()
    _export_onnx(model, folder / "model.onnx", settings["image_size_px"])
    write_settings(folder, settings, decision)
    here = decision.calibrate(torch_score(model, torch.device("cpu"))(images))
    gap = float(np.abs(Tagger.load(folder).score(images) - here).max())
    if not gap <= _TOLERANCE:
        raise click.ClickException(
            f"the exported model's scores differ from torch's by {gap:.1e}, more than "
            f"{_TOLERANCE:.0e}; it was not registered"
        )


def write_settings(folder: Path, settings: Mapping[str, Any], decision: Decision) -> None:
    """Write the bundle's tagger.json, or write it over."""
    text = json.dumps({**settings, **decision.as_settings()}, indent=2, ensure_ascii=False)
    (folder / "tagger.json").write_text(text + "\n", encoding="utf-8")


def _export_onnx(model: TaggerNet, path: Path, image_size_px: int) -> None:
    # The exporter and its optimizer tell their progress in a dozen lines that no user needs.
    for chatty in ("torch.onnx", "onnxscript"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    example = torch.zeros(2, 3, image_size_px, image_size_px, dtype=torch.uint8)
    torch.onnx.export(
        _widen_groups(copy.deepcopy(Scorer(model).eval())),
        (example,),
        path,
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        external_data=False,
        verbose=False,
    )


def _widen_groups(network: nn.Module) -> nn.Module:
    """Join a network's narrow groups of channels, with zeros between what was not connected.

    The same function, but ONNX Runtime takes only groups of 8 or 16 channels, as wide as the
    processor's registers, to its fastest convolutions; ResNeXt's first stages have 4 and 8. Groups
    of a single channel have kernels of their own.
    """
    for conv in network.modules():
        if type(conv) is not nn.Conv2d:
            continue
        width = conv.in_channels // conv.groups
        joined = _LEAST_GROUP // width
        if width == 1 or joined < 2 or _LEAST_GROUP % width or conv.groups % joined:
            continue
        groups = conv.groups // joined
        apart = conv.weight.detach().view(groups, joined, -1, *conv.weight.shape[1:])
        together = torch.einsum("gjoihw,jk->gjokihw", apart, torch.eye(joined))
        shape = conv.out_channels, _LEAST_GROUP, *conv.kernel_size
        conv.weight, conv.groups = nn.Parameter(together.reshape(shape)), groups
    return network


def write_weights(path: Path, model: TaggerNet, labels: Sequence[str]) -> str:
    """Write the network's weights for fine-tuning, as safetensors; gives the file's SHA-256."""
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, path, metadata={"labels": json.dumps(list(labels))})
    return file_digest(path)


@dataclass(frozen=True)
class LoggedModel:
    """A model in the record; version is its number in the registry, None if it is not there."""

    model_id: str
    uri: str
    version: str | None


def log_bundle(
    folder: Path, example: NDArray[np.uint8], registered_model: str, run_id: str, card: str
) -> LoggedModel:
    """Log a bundle to the active run as a pyfunc, and register it unless the name is `none`.

    example: an image (3, S, S) uint8 for the model's input example. card: in Markdown; it goes into
    the bundle, and onto the version's page. A version that this run has registered before it was
    killed is taken as it is.
    """
    if found := _registered_by(run_id, registered_model):
        _describe(registered_model, str(found.version), card)
        return found
    (folder / "card.md").write_text(card, encoding="utf-8")
    # Else a uv.lock in the working directory, torch and all, becomes the model's environment.
    mlflow.environment_variables.MLFLOW_UV_AUTO_DETECT.set(False)
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
    if number is None:
        return LoggedModel(info.model_id, info.model_uri, None)
    _describe(registered_model, str(number), card)
    return LoggedModel(info.model_id, info.model_uri, str(number))


def _describe(name: str, version: str, card: str) -> None:
    """Put the card onto the page of a version that has no description yet."""
    client = mlflow.MlflowClient()
    if not client.get_model_version(name, version).description:
        client.update_model_version(name, version, without_labels(card)[:_MOST_DESCRIBED])


def _registered_by(run_id: str, name: str) -> LoggedModel | None:
    run = mlflow.get_run(run_id)
    if run.info.end_time:  # it was finished, and has been trained further
        return None
    for version in mlflow.MlflowClient().search_model_versions(f"name='{name}'"):
        if version.run_id == run_id:
            number = str(version.version)  # which a store may give as an int
            return LoggedModel(model_id_of(version) or "", version.source or "", number)
    return None


def _signature() -> ModelSignature:
    outputs = Schema([
        ColSpec(Array(DataType.string), "labels"), ColSpec(Array(DataType.double), "scores")
    ])  # fmt: skip
    params = ParamSchema([
        ParamSpec("threshold", DataType.double, None), ParamSpec("top_k", DataType.integer, 0),
        ParamSpec("all_scores", DataType.boolean, False),
    ])  # fmt: skip
    return ModelSignature(Schema([ColSpec(DataType.string, "image")]), outputs, params)


def _as_base64(image: NDArray[np.uint8]) -> str:
    jpeg = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(jpeg, format="JPEG", quality=90)
    return base64.b64encode(jpeg.getvalue()).decode()
