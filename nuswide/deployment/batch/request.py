"""The options, the model and the summary of a tagging."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import click
import mlflow
import numpy as np
from numpy.typing import NDArray

from nuswide.core.wording import counted
from nuswide.tagger import Tagger
from nuswide.tracking.registry import address_of, find_version


@dataclass(frozen=True)
class TagOptions:
    """Options of the result; the command line documents them."""

    threshold: float | None = None
    top_k: int = 0
    all_scores: bool = False
    part_size: int = 1000
    batch_size: int = 8


@dataclass(frozen=True)
class TagSummary:
    """The outcome of a tagging. rejected: images that cannot be decoded, listed in rejected_file.

    skipped: files of a folder that are no images, listed in skipped_file. scored: images that no
    earlier process had tagged; seconds: the time that they took.
    """

    out: str
    images: int
    rejected: int
    rejected_file: str
    skipped: int
    skipped_file: str
    scored: int
    seconds: float

    def __str__(self) -> str:
        rejected = (
            f"{counted(self.rejected, 'was rejected and is', 'were rejected and are')} listed in "
            f"{self.rejected_file}"
            if self.rejected
            else "none was rejected"
        )
        if self.skipped:
            others = counted(self.skipped, "other file is", "other files are")
            rejected += f"; {others} listed in {self.skipped_file}"
        speed = f", {self.scored / self.seconds:.1f} images/s" if self.scored else ""
        images = counted(self.images, "image")
        return f"{self.out} contains the tags of {images}; {rejected}{speed}"


@dataclass(frozen=True)
class ResolvedModel:
    """The model of a tagging.

    uri: models:/NAME/VERSION, or the folder. bundle: the folder of model.onnx and tagger.json.
    digest: 16 hex digits over these two files. thresholds: (C,).
    """

    uri: str
    version: str | None
    bundle: Path
    digest: str
    labels: tuple[str, ...]
    thresholds: NDArray[np.float32]


def resolve_model(address: str, threshold: float | None) -> ResolvedModel:
    """Find models:/NAME@ALIAS, models:/NAME/VERSION, or the folder of a bundle or logged model.

    threshold: for all labels, instead of the model's own. Raises click.ClickException if the model
    does not exist.
    """
    version = None
    if address.startswith("models:/"):
        found = find_version(address)
        version, address = str(found.version), address_of(found)
        folder = Path(mlflow.artifacts.download_artifacts(address))
    else:
        folder = Path(address).absolute()
        address = str(folder)
    bundle = folder / "artifacts" / "bundle" if (folder / "MLmodel").is_file() else folder
    tagger = _open(bundle, address)
    own = tagger.thresholds if threshold is None else threshold
    thresholds = np.broadcast_to(np.asarray(own, np.float32), (len(tagger.labels),))
    digest = hashlib.sha256()
    for name in ("model.onnx", "tagger.json"):
        with (bundle / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return ResolvedModel(
        address, version, bundle, digest.hexdigest()[:16], tuple(tagger.labels), thresholds
    )


def _open(bundle: Path, address: str) -> Tagger:
    if not (bundle / "model.onnx").is_file() or not (bundle / "tagger.json").is_file():
        raise click.ClickException(
            f"{address} is not a model; give models:/NAME@ALIAS, models:/NAME/VERSION, or a folder "
            "with model.onnx and tagger.json"
        )
    try:
        return Tagger.load(bundle)
    except Exception as error:  # ONNX Runtime's errors have no other base class
        reason = str(error).splitlines()[0]
        raise click.ClickException(f"the model in {bundle} cannot be loaded: {reason}") from error
