"""The served model: images in, labels with scores out.

Owns decode_image, which the cache, the evaluation and the server share, and the pyfunc that MLflow
loads from this very file. Needs numpy, Pillow, onnxruntime, pandas and mlflow only, never torch or
another module of this package, and unpickles nothing.
"""

import base64
import binascii
import io
import json
import logging
import os
import re
import struct
import traceback
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import onnxruntime
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 100_000_000
DECODER_VERSION = 2  # increment it when decode_image changes pixels: caches are then rebuilt
# What Pillow is known to raise on an invalid image file.
PICTURE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    MemoryError, struct.error, Image.DecompressionBombError,
    RuntimeError, AttributeError,  # AVIF, BLP and DDS; SPIDER
)  # fmt: skip
# Formats that the served model reads. Pillow has forty more: one of them starts Ghostscript, and
# others decode in pure Python.
SERVED_FORMATS = frozenset({"AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP"})
_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]{1,32};base64,", re.IGNORECASE)
_WHITESPACE = b" \t\n\v\f\r"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # two tags of TIFF, a value
_LONGEST = 20  # aspect ratio above which crop leaves out the ends first, to bound its memory
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_FITS = frozenset({"squash", "crop", "pad"})
log = logging.getLogger(__name__)


class RangeError(ValueError):
    """The range of an image's pixels is unknown, so that black and white are, too."""


class Preprocessing(NamedTuple):
    """How an image becomes the uint8 input of a network.

    size_px: side of the square. fit: squash, regardless of the aspect ratio; crop, the shorter side
    to size_px and then the centre; or pad, the longer side to size_px and the rest in `fill`.
    interpolation: bilinear or bicubic. fill: RGB.
    """

    size_px: int
    fit: str = "squash"
    interpolation: str = "bilinear"
    fill: tuple[int, int, int] = (0, 0, 0)

    def as_settings(self) -> dict[str, Any]:
        """Return it as a bundle's tagger.json has it; preprocessing_of reads it."""
        rest = self._asdict()
        return {"image_size_px": rest.pop("size_px"), "preprocessing": rest}


def decode_image(
    source: Path | str | BinaryIO,
    size_px: int,
    fit: str = "squash",
    interpolation: str = "bilinear",
    fill: tuple[int, int, int] = (0, 0, 0),
) -> NDArray[np.uint8]:
    """Decode an image to RGB, upright, fitted into a square; (3, size_px, size_px) uint8.

    The arguments after the source are those of Preprocessing. Transparency is composited on white.
    Float pixels are read as 0 to 1 if none is above 1, else as 0 to 255; 32-bit integers as 0 to
    255 if none is above 255, else as 0 to 65535; other pixels of these types raise RangeError.
    Raises ValueError saying why an image cannot be decoded.
    """
    preprocessing = Preprocessing(size_px, fit, interpolation, fill)
    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} px is above {MAX_PIXELS} pixels")
            ImageOps.exif_transpose(
                image, in_place=True
            )  # in place: else it copies upright images, too
            square = _fitted(_to_rgb(image), preprocessing)
    except RangeError:
        raise
    except PICTURE_ERRORS as error:
        reason = str(error).partition(" <_io.")[0]  # without the address of a Python object
        raise ValueError(f"not a readable picture: {reason}") from error
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        # convert() would clip: floats from 0 to 1 to black, 16-bit grey to white.
        levels = np.asarray(image).astype(np.float32)
        grey = (levels / (_white(image, levels) / 255)).round().astype(np.uint8)
        if _tiff_tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts 8 bits only
            grey = 255 - grey
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")  # convert() would copy
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _white(image: Image.Image, levels: NDArray[np.float32]) -> int:
    """Return the level of white in a grey image of floats, or of more than 8 bits."""
    whites: tuple[int, ...]
    if image.mode == "F":
        whites = 1, 255
    elif image.mode.startswith("I;16") or image.format == "PPM":
        whites = (4095 if _tiff_tag(image, _BITS_PER_SAMPLE) == (12,) else 65535,)
    else:
        whites = 255, 65535
    for white in whites:
        if levels.min() >= 0 and levels.max() <= white:  # NaN is neither
            return white
    kind = "float" if image.mode == "F" else "32-bit"
    limits = " or ".join(f"0 to {white}" for white in whites)
    raise RangeError(f"its {kind} pixels are not within {limits}; save it with 8 bits")


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return getattr(image, "tag_v2", {}).get(tag)


def _fitted(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    size_px, fit, interpolation, fill = preprocessing
    square, resampling = (size_px, size_px), _FILTERS[interpolation]
    if fit == "squash":
        return image.resize(square, resampling)
    if fit == "crop":
        image = _centre(image, [min(side, _LONGEST * min(image.size)) for side in image.size])
        shorter = min(image.size)
        resized = image.resize([size_px * side // shorter for side in image.size], resampling)
        return _centre(resized, square)
    longer = max(image.size)
    width, height = (max(1, round(side * size_px / longer)) for side in image.size)
    padded = Image.new("RGB", square, tuple(fill))
    resized = image.resize((width, height), resampling)
    padded.paste(resized, ((size_px - width) // 2, (size_px - height) // 2))
    return padded


def _centre(image: Image.Image, size: Sequence[int]) -> Image.Image:
    """Crop the centre as torchvision's CenterCrop does. size: width and height."""
    left, top = (round((own - new) / 2) for own, new in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))


class Tagger:
    """A bundle's network, with the labels and thresholds of its scores.

    labels: C names. thresholds: (C,); a label is predicted if its score is at least its threshold.
    preprocessing: the arguments of decode_image. config: the fields of the experiment that trained
    it. Normalization and sigmoid are part of the network.
    """

    def __init__(self, session: onnxruntime.InferenceSession, settings: dict[str, Any]) -> None:
        self.session = session
        self.labels: list[str] = settings["labels"]
        self.thresholds = _per_label(settings["thresholds"], len(self.labels))
        calibration = settings.get("calibration")
        self.calibration = calibration and tuple(
            _per_label(calibration[name], len(self.labels)) for name in ("scale", "shift")
        )
        self.preprocessing = preprocessing_of(settings)
        self.config: dict[str, Any] = settings["config"]

    @classmethod
    def load(cls, folder: Path, threads: int | None = None) -> "Tagger":
        """Open the bundle in a folder.

        threads: used to score a batch; by default all cores, which is too many for one of several
        processes on a machine.
        """
        settings = json.loads((folder / "tagger.json").read_text(encoding="utf-8"))
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", _session_options(threads), providers=["CPUExecutionProvider"]
        )
        return cls(session, settings)

    def score(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score images (N, 3, S, S) uint8; (N, C) float32 in [0, 1]."""
        scores = self.network_scores(images)
        return scores if self.calibration is None else _calibrated(scores, *self.calibration)

    def network_scores(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Score images like `score`, but without calibration."""
        scores: NDArray[np.float32] = self.session.run(["scores"], {"images": images})[0]
        return scores


def preprocessing_of(settings: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing in a bundle's tagger.json; older ones have the size alone.

    Raises TaggerError for one that this version does not know.
    """
    stated = settings.get("preprocessing", {})
    try:
        found = Preprocessing(settings["image_size_px"], **stated)
        is_known = found.fit in _FITS and found.interpolation in _FILTERS and len(found.fill) == 3
    except TypeError:
        is_known = False
    if not is_known:
        raise TaggerError(
            f"tagger.json states preprocessing that this version does not know: {stated}; update "
            "nuswide"
        )
    return found


def _per_label(value: Any, n_labels: int) -> NDArray[np.float64]:
    """Broadcast one number, or one per label, to (C,)."""
    return np.broadcast_to(np.asarray(value, np.float64), (n_labels,))


def _calibrated(
    scores: NDArray[np.float32], scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return sigmoid(scale * logit(score) + shift); 0 and 1 count as their neighbouring floats."""
    exact = np.clip(scores.astype(np.float64), 2.0**-126, 1 - 2.0**-25)
    logits = np.log(exact) - np.log1p(-exact)
    with np.errstate(over="ignore"):  # exp overflows to inf, the score to 0
        return (1 / (1 + np.exp(-(scale * logits + shift)))).astype(np.float32)


def _session_options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: all cores
    options.inter_op_num_threads = 1  # the network is one chain of layers
    return options


class TaggerError(MlflowException):
    """An error whose message stays as it is; MLflow's server would prefix the whole request."""

    def __init__(self, message: str, error_code: int = INTERNAL_ERROR) -> None:
        self._message = message
        super().__init__(message, error_code)

    @property
    def message(self) -> str:
        """Return what is wrong."""
        return self._message

    @message.setter
    def message(self, value: str) -> None:
        pass


class BadRequest(TaggerError):
    """An error 400: what is wrong with a request."""

    def __init__(self, message: str) -> None:
        super().__init__(message, INVALID_PARAMETER_VALUE)


def check_params(params: dict[str, Any]) -> None:
    """Raise BadRequest if a parameter of a request has the wrong type or is out of range."""
    threshold, top_k = params.get("threshold"), params.get("top_k")
    if threshold is not None and not (_is_a(Real, threshold) and 0 <= threshold <= 1):
        raise BadRequest("threshold must be a number from 0 to 1")
    if top_k is not None and not (_is_a(Integral, top_k) and top_k >= 0):
        raise BadRequest("top_k must be a whole number: 0 (any number) or more")
    if not isinstance(params.get("all_scores"), bool | np.bool_ | None):
        raise BadRequest("all_scores must be true or false")


def _is_a(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


class TaggerModel(PythonModel):
    """The pyfunc around a Tagger: base64 images in, labels with scores out."""

    max_pixels = MAX_PIXELS  # of an image

    def load_context(self, context: Any) -> None:
        """Open the bundle that was logged with the model.

        OMP_NUM_THREADS, if set, is the number of threads; with `mlflow models serve -w N` it should
        be the number of cores divided by N.
        """
        threads = os.environ.get("OMP_NUM_THREADS", "")
        bundle = Path(context.artifacts["bundle"])
        self.tagger = Tagger.load(bundle, int(threads) if threads.isdecimal() else None)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Tag the images in the column `image`: base64 texts, data:image/...;base64 URIs or bytes.

        params: `threshold` (for all labels; default: the model's own; 0 returns every label),
        `top_k` (maximum labels per image, of those that reach their thresholds; 0 for no limit) and
        `all_scores` (add the column `all_scores`, every label with its score). Return one row per
        image with `labels` and their `scores`, best first. An image that cannot be decoded fails
        the whole request, naming the row. Raises TaggerError, whose message never repeats the
        input: BadRequest for invalid input; for any other error its traceback is logged.
        """
        try:
            return self._predict(model_input, params or {})
        except TaggerError:
            raise
        except Exception as error:
            # MLflow's server would send the traceback of an unexpected error to the client.
            log.error("%s\n%s", type(error).__name__, format_traceback(error))
            raise TaggerError("the model failed") from None

    def _predict(self, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        thresholds, top_k, with_all = self._read_params(params)
        if "image" not in model_input:
            raise BadRequest("the input has no column image")
        images = [self._decode(row, value) for row, value in enumerate(model_input["image"])]
        tagged = [self._tag(image, thresholds, top_k) for image in images]
        columns = ["labels", "scores", "all_scores"] if with_all else ["labels", "scores"]
        return pd.DataFrame(tagged, columns=["labels", "scores", "all_scores"])[columns]

    def _read_params(self, params: dict[str, Any]) -> tuple[NDArray[np.float32], int | None, bool]:
        check_params(params)
        threshold = params.get("threshold")
        thresholds = self.tagger.thresholds.astype(
            np.float32
        )  # the type of scores: a score of 0.7 reaches a threshold of 0.7
        if threshold is not None:
            thresholds[:] = threshold
        return thresholds, int(params.get("top_k") or 0) or None, bool(params.get("all_scores"))

    def _decode(self, row: int, value: Any) -> NDArray[np.uint8]:
        picture = io.BytesIO(_content(row, value))
        try:
            with Image.open(picture) as image:  # reads the header only
                form, n_pixels = image.format, image.width * image.height
            if form not in SERVED_FORMATS:
                raise BadRequest(
                    f"row {row}: image is in a form that is not served; send "
                    + ", ".join(sorted(SERVED_FORMATS - {"MPO"}))
                )
            if n_pixels > self.max_pixels:
                raise BadRequest(f"row {row}: image has more than {self.max_pixels} pixels")
            picture.seek(0)
            return decode_image(picture, *self.tagger.preprocessing)
        except RangeError as error:
            raise BadRequest(f"row {row}: image: {error}") from None
        except PICTURE_ERRORS:
            # Pillow's message may quote the input.
            raise BadRequest(f"row {row}: image is not a readable picture") from None

    def _tag(
        self, image: NDArray[np.uint8], thresholds: NDArray[np.float32], top_k: int | None
    ) -> tuple[list[str], list[float], dict[str, float]]:
        scores = self.tagger.score(image[None])[0]
        best_first = np.argsort(-scores, kind="stable")
        kept = best_first[scores[best_first] >= thresholds[best_first]][:top_k]
        labels, values = self.tagger.labels, scores.tolist()
        everything = dict(zip(labels, values, strict=True))
        return [labels[i] for i in kept], [values[i] for i in kept], everything


def format_traceback(error: BaseException) -> str:
    """Return an error's traceback without its message, which may repeat the client's input."""
    return "".join(traceback.format_tb(error.__traceback__))


def _content(row: int, value: Any) -> bytes:
    """Return an image file's bytes: given as they are, or as base64, which may have line breaks."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        if not isinstance(value, str):
            raise TypeError
        value = value.strip()
        if uri := _DATA_URI.match(value):
            value = value[uri.end() :]
        return base64.b64decode(value.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except (TypeError, binascii.Error, ValueError):
        raise BadRequest(
            f"row {row}: image must be a base64 text or a data:image/...;base64 URI"
        ) from None


if __name__ != "nuswide.tagger":  # MLflow is running this file as a model's code
    set_model(TaggerModel())
