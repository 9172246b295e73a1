"""The model that the server scores with, as a pyfunc of this package's own tagger.

No code from the registry runs.
"""

import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from numpy.typing import NDArray

from nuswide.deployment.serve.settings import Settings
from nuswide.tagger import Tagger, TaggerError, TaggerModel

DEADLINE: ContextVar[float] = ContextVar("DEADLINE")  # on time.monotonic()'s clock


class DeadlineExceeded(TaggerError):
    """A request's deadline has passed; the rest of its images need not be scored."""


class ServedModel(TaggerModel):
    """A tagger's pyfunc that stops between two images once the request's deadline has passed."""

    def __init__(self, tagger: Tagger, max_pixels: int) -> None:
        self.tagger = tagger
        self.max_pixels = max_pixels

    def tag(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Tag a checked request, called by MLflow."""
        return self.predict(None, data, params)

    def _decode(self, row: int, value: Any) -> NDArray[np.uint8]:
        _check_deadline()
        return super()._decode(row, value)

    def _tag(self, image: NDArray[np.uint8], *rest: Any) -> Any:
        _check_deadline()
        return super()._tag(image, *rest)


def _check_deadline() -> None:
    if time.monotonic() > DEADLINE.get(float("inf")):
        raise DeadlineExceeded("the deadline has passed")


def open_model(folder: Path, settings: Settings) -> tuple[PyFuncModel, Tagger]:
    """Load a downloaded model and score a blank image, so that the first request is not slower."""
    tagger = Tagger.load(folder / "artifacts" / "bundle", settings.threads_of_a_worker)
    size_px = tagger.preprocessing.size_px
    tagger.score(np.zeros((1, 3, size_px, size_px), np.uint8))
    served = ServedModel(tagger, settings.pixels)
    return PyFuncModel(Model.load(str(folder)), served, predict_fn="tag"), tagger
