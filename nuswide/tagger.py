"""The served model: pictures in, labels with scores out.

Owns decode_image, which the cache, the evaluation and the server share, and the pyfunc that MLflow
loads from this very file. Needs numpy, Pillow, onnxruntime, pandas and mlflow only, never torch or
another module of this package, and unpickles nothing.

    tagger = Tagger.load(folder)  # a bundle: model.onnx and tagger.json
    scores = tagger.score(np.stack([decode_image("photo.jpg", tagger.image_size_px)]))
"""

import base64
import binascii
import io
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnxruntime
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000
DECODER_VERSION = 1  # to be raised when decode_image gives other pixels: caches then start afresh
# What Pillow is known to raise on a file that is no sound picture.
_PICTURE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, struct.error, Image.DecompressionBombError,
    RuntimeError, AttributeError,  # AVIF, BLP and DDS; SPIDER
)  # fmt: skip


def decode_image(source: Path | str | BinaryIO, size_px: int) -> NDArray[np.uint8]:
    """Decode a picture to RGB, upright, squashed to a square; (3, size_px, size_px) uint8.

    Transparency comes out on white. Raises ValueError saying what is wrong with the picture.
    """
    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} px is above {MAX_PIXELS} pixels")
            ImageOps.exif_transpose(image, in_place=True)  # else it copies an upright one, too
            square = _to_rgb(image).resize((size_px, size_px), Image.Resampling.BILINEAR)
    except _PICTURE_ERRORS as error:
        raise ValueError(f"not a readable picture: {error}") from error
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # greys of 16 bits, which convert() would clip to white
        levels = np.clip(np.asarray(image).astype(np.float32) / 257, 0, 255)
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


class Tagger:
    """A bundle's network with what is needed to read its scores.

    labels: C names. threshold: a label is predicted at this score or above. image_size_px: side of
    the square that the network takes. config: the fields of the experiment that made it.
    Normalisation and sigmoid are inside the network.
    """

    def __init__(self, session: onnxruntime.InferenceSession, settings: dict[str, Any]) -> None:
        self.session = session
        self.labels: list[str] = settings["labels"]
        self.threshold: float = settings["threshold"]
        self.image_size_px: int = settings["image_size_px"]
        self.config: dict[str, Any] = settings["config"]

    @classmethod
    def load(cls, folder: Path) -> "Tagger":
        """Open the bundle in a folder."""
        settings = json.loads((folder / "tagger.json").read_text(encoding="utf-8"))
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", providers=["CPUExecutionProvider"]
        )
        return cls(session, settings)

    def score(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score images (N, 3, S, S) uint8; (N, C) float32 in [0, 1]."""
        scores: NDArray[np.float32] = self.session.run(["scores"], {"images": images})[0]
        return scores


class BadRequest(MlflowException):
    """An error 400 that keeps its words; MLflow's server would prefix the whole request."""

    def __init__(self, message: str) -> None:
        self._words = message
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """What is wrong with the request."""
        return self._words

    @message.setter
    def message(self, value: str) -> None:
        pass


class TaggerModel(PythonModel):
    """The pyfunc around a Tagger: base64 pictures in, labels with scores out."""

    def load_context(self, context: Any) -> None:
        """Open the bundle that was logged with the model."""
        self.tagger = Tagger.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Tag the pictures in the column `image`, each a base64 text of a picture file.

        params: `threshold` (default: the model's own; 0 gives every label) and `top_k` (the most
        labels a picture gets; 0 for any number). Gives a row a picture with `labels` and their
        `scores`, best first. A picture that can't be read fails the whole request, naming the row.
        """
        threshold, top_k = self._read_params(params or {})
        images = [self._decode(row, text) for row, text in enumerate(model_input["image"])]
        tagged = [self._tag(image, threshold, top_k) for image in images]
        return pd.DataFrame(tagged, columns=["labels", "scores"])

    def _read_params(self, params: dict[str, Any]) -> tuple[float, int | None]:
        threshold, top_k = params.get("threshold"), params.get("top_k") or 0
        threshold = self.tagger.threshold if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise BadRequest(f"threshold is {threshold}; it must be from 0 to 1")
        if top_k < 0:
            raise BadRequest(f"top_k is {top_k}; it must be 0 (any number) or more")
        return threshold, top_k or None

    def _decode(self, row: int, text: Any) -> NDArray[np.uint8]:
        try:
            picture = base64.b64decode(text, validate=True)
        except (TypeError, binascii.Error, ValueError):
            raise BadRequest(f"row {row}: image must be a base64 text") from None
        try:
            return decode_image(io.BytesIO(picture), self.tagger.image_size_px)
        except ValueError:
            # Pillow's own words may quote the input; the caller knows what it sent.
            raise BadRequest(f"row {row}: image is not a readable picture") from None

    def _tag(
        self, image: NDArray[np.uint8], threshold: float, top_k: int | None
    ) -> tuple[list[str], list[float]]:
        scores = self.tagger.score(image[None])[0]
        best_first = np.argsort(-scores, kind="stable")[:top_k]
        kept = [i for i in best_first if scores[i] >= threshold]
        return [self.tagger.labels[i] for i in kept], [float(scores[i]) for i in kept]


if __name__ != "nuswide.tagger":  # MLflow is running this file as a model's code
    set_model(TaggerModel())
