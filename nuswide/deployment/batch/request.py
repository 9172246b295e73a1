"""What one tagging is asked to do: which model, which options.

Owns Options and Model, and the look-up of a model by address or folder. Scores nothing.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import click
import mlflow
import numpy as np
from numpy.typing import NDArray

from nuswide.tagger import Tagger
from nuswide.tracking.registry import address_of, find_version


@dataclass(frozen=True)
class Options:
    """What the user may choose of the result; the command line names units and defaults."""

    threshold: float | None = None
    top_k: int = 0
    all_scores: bool = False
    part_size: int = 1000
    batch_size: int = 8


@dataclass(frozen=True)
class Summary:
    """How many pictures a tagging was of, how many can't be read, and where they are listed.

    scored: those of them that were not done before; seconds: what they took.
    """

    out: str
    pictures: int
    rejected: int
    rejected_file: str
    scored: int
    seconds: float

    def __str__(self) -> str:
        rejected = (
            f"{self.rejected:,} were rejected, as {self.rejected_file} says"
            if self.rejected
            else "none was rejected"
        )
        speed = f", {self.scored / self.seconds:.1f} pictures/s" if self.scored else ""
        return f"{self.out} holds the tags of {self.pictures:,} pictures; {rejected}{speed}"


@dataclass(frozen=True)
class Model:
    """A model that is about to tag.

    uri: what MLflow knows it by, with its version's number, or the folder. bundle: its folder of
    model.onnx and tagger.json. digest: 16 hex digits over these two. thresholds: (C,).
    """

    uri: str
    version: str | None
    bundle: Path
    digest: str
    labels: tuple[str, ...]
    thresholds: NDArray[np.float32]


def find_model(address: str, threshold: float | None) -> Model:
    """Find models:/NAME@ALIAS, models:/NAME/VERSION, a bundle's folder or a logged model's.

    threshold: for all labels, in place of the model's own. Raises click.ClickException if there is
    no such model.
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
    return Model(
        address, version, bundle, digest.hexdigest()[:16], tuple(tagger.labels), thresholds
    )


def _open(bundle: Path, address: str) -> Tagger:
    if not (bundle / "model.onnx").is_file() or not (bundle / "tagger.json").is_file():
        raise click.ClickException(
            f"{address} is no model; give models:/NAME@ALIAS, models:/NAME/VERSION, or a folder "
            "with model.onnx and tagger.json"
        )
    try:
        return Tagger.load(bundle)
    except Exception as error:  # those of ONNX Runtime have no other base
        reason = str(error).splitlines()[0]
        raise click.ClickException(f"the model in {bundle} can't be opened: {reason}") from error
