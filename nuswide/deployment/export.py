"""Export of a trained network as a bundle (ONNX, labels, model card) and its registration.

Nothing that is written can execute code.
"""

import base64
import copy
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
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
from nuswide.config import Config
from nuswide.evaluation.evaluate import Decision, torch_score
from nuswide.evaluation.model_card import without_labels
from nuswide.models.networks import Scorer, TaggerNet
from nuswide.models.timm_networks import TIMM, first_line
from nuswide.models.weights import METADATA
from nuswide.tagger import Tagger
from nuswide.tracking.reader import WEIGHTS_TAG, file_digest
from nuswide.tracking.registry import model_id_of
from nuswide.tracking.run import scratch_folder

_TOLERANCE = 1e-4  # between the scores of torch and ONNX Runtime
_LEAST_GROUP = 16  # channels of a convolution's group
_MOST_DESCRIBED = 4000  # characters; the registry's page takes 5,000
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")


class ExportError(click.ClickException):
    """A network cannot be exported, or ONNX Runtime's scores differ from torch's."""


def write_bundle(
    folder: Path,
    model: TaggerNet,
    settings: Mapping[str, Any],
    decision: Decision,
    images: NDArray[np.uint8],
) -> None:
    """Write model.onnx and tagger.json, and check on images that both engines agree.

    settings: labels, image_size_px and others to store with the model. decision: calibration and
    thresholds. images: (N, 3, S, S) uint8. Raises ExportError if the network cannot be exported,
    or a score of ONNX Runtime differs from torch's by more than 1e-4.
    """
    folder.mkdir()
    model.cpu().eval()
    _export_onnx(model, folder / "model.onnx", settings["image_size_px"])
    write_settings(folder, settings, decision)
    here = decision.calibrate(torch_score(model, torch.device("cpu"))(images))
    gap = float(np.abs(Tagger.load(folder).score(images) - here).max())
    if not gap <= _TOLERANCE:
        raise ExportError(
            f"the exported model's scores differ from torch's by {gap:.1e}, more than "
            f"{_TOLERANCE:.0e}"
        )


def require_exportable(model: TaggerNet, config: Config) -> None:
    """Raise ExportError for a new network that could not be registered after its training.

    It is exported once for this, which takes some seconds. Only timm's are, as the tests export all
    others.
    """
    is_resumed, size_px = config.resume not in ("none", "auto"), config.image_size_px
    if is_resumed or config.registered_model == "none" or not config.backbone.startswith(TIMM):
        return
    images = np.random.default_rng(0).integers(0, 256, (2, 3, size_px, size_px), np.uint8)
    settings = {"labels": [], "image_size_px": size_px, "config": {}}
    decision = Decision(np.empty(0, np.float32))
    try:
        with scratch_folder() as folder:
            write_bundle(folder / "bundle", model, settings, decision, images)
    except ExportError as error:
        raise ExportError(
            f"backbone={config.backbone}: {error.message}; choose another backbone, or train "
            "without registering it: registered_model=none"
        ) from error


def write_settings(folder: Path, settings: Mapping[str, Any], decision: Decision) -> None:
    """Write the bundle's tagger.json, replacing an existing one."""
    text = json.dumps({**settings, **decision.as_settings()}, indent=2, ensure_ascii=False)
    (folder / "tagger.json").write_text(text + "\n", encoding="utf-8")


def _export_onnx(model: TaggerNet, path: Path, image_size_px: int) -> None:
    # The exporter and its optimizer log a dozen lines of progress.
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    example = torch.zeros(2, 3, image_size_px, image_size_px, dtype=torch.uint8)
    try:
        torch.onnx.export(
            _widen_groups(_without_fused_attention(copy.deepcopy(Scorer(model).eval()))),
            (example,),
            path,
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # many types, of each stage of the exporter
        raise ExportError(f"the network cannot be exported to ONNX ({_cause(error)})") from error


def _cause(error: BaseException) -> str:
    """Return the first line of the error that an error was raised from."""
    while error.__cause__:
        error = error.__cause__
    return first_line(error)


def _without_fused_attention(network: nn.Module) -> nn.Module:
    """Have timm's networks compute attention in single steps, which all of them export."""
    modules: Iterable[Any] = network.modules()
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return network


def _widen_groups(network: nn.Module) -> nn.Module:
    """Merge narrow groups of grouped convolutions, with zero weights between merged groups.

    The function is unchanged, but ONNX Runtime has its fastest convolutions only for groups of 8 or
    16 channels, the width of the processor's registers; ResNeXt's first stages have 4 and 8.
    Depthwise convolutions have kernels of their own.
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


def write_weights(
    path: Path,
    model: TaggerNet,
    labels: Sequence[str],
    preprocessing: Mapping[str, Any] | None = None,
) -> str:
    """Write the network's weights for fine-tuning, as safetensors; return the file's SHA-256.

    preprocessing: see preprocessing.metadata_of.
    """
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    metadata = json.dumps({"labels": list(labels), "preprocessing": dict(preprocessing or {})})
    save_file(tensors, path, metadata={METADATA: metadata})
    return file_digest(path)


@dataclass(frozen=True)
class LoggedModel:
    """A logged model. version: its version in the registry, None if it is not registered.

    model_id and uri are None for a network that could not be exported.
    """

    model_id: str | None
    uri: str | None
    version: str | None


def log_bundle(
    folder: Path,
    example: NDArray[np.uint8],
    registered_model: str,
    run_id: str,
    card: str,
    weights_digest: str | None = None,
) -> LoggedModel:
    """Log a bundle to the active run as a pyfunc, and register it unless the name is `none`.

    example: an image (3, S, S) uint8 as the model's input example. card: Markdown, for the bundle
    and the version's description. weights_digest: of the torch weights that the bundle was made
    from; if the run has registered a version of them before it was stopped, that is returned.
    """
    if weights_digest and (found := _registered(run_id, registered_model, weights_digest)):
        _describe(registered_model, str(found.version), card)
        return found
    (folder / "card.md").write_text(card, encoding="utf-8")
    # Otherwise a uv.lock in the working directory becomes the model's environment, with torch.
    mlflow.environment_variables.MLFLOW_UV_AUTO_DETECT.set(False)
    info = mlflow.pyfunc.log_model(
        name="model",
        python_model=tagger.__file__,
        artifacts={"bundle": str(folder)},
        signature=_signature(),
        input_example=pd.DataFrame({"image": [_as_base64(example)]}),
        pip_requirements=[f"{name}=={installed(name)}" for name in _REQUIREMENTS],
        registered_model_name=None if registered_model == "none" else registered_model,
        tags={WEIGHTS_TAG: weights_digest} if weights_digest else None,
    )
    number = info.registered_model_version
    if number is None:
        return LoggedModel(info.model_id, info.model_uri, None)
    _describe(registered_model, str(number), card)
    return LoggedModel(info.model_id, info.model_uri, str(number))


def _describe(name: str, version: str, card: str) -> None:
    """Set the card as description of a version that has none."""
    client = mlflow.MlflowClient()
    if not client.get_model_version(name, version).description:
        client.update_model_version(name, version, without_labels(card)[:_MOST_DESCRIBED])


def _registered(run_id: str, name: str, weights_digest: str) -> LoggedModel | None:
    """Return the version of a model that a run has registered of these weights, if any."""
    client = mlflow.MlflowClient()
    for version in client.search_model_versions(f"run_id='{run_id}'"):
        model_id = model_id_of(version) or ""
        tags = version.tags
        if (
            WEIGHTS_TAG not in tags and model_id
        ):  # the run was stopped before the version was tagged
            tags = client.get_logged_model(model_id).tags
        if version.name == name and tags.get(WEIGHTS_TAG) == weights_digest:
            number = str(version.version)  # some stores return an int
            return LoggedModel(model_id, version.source or "", number)
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
