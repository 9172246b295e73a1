"""The model that the server scores with.

Owns the bundle's way into MLflow's pyfunc, by this package's own tagger: no code of the registry
runs. Decides nothing about callers.

    pyfunc = open_model(folder, Settings())
    app = mlflow.pyfunc.scoring_server.init(pyfunc)
"""

import logging
import time
import traceback
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc import PyFuncModel
from numpy.typing import NDArray

from nuswide.deployment.serve.settings import Settings
from nuswide.tagger import BadRequest, Tagger, TaggerModel

DEADLINE: ContextVar[float] = ContextVar("DEADLINE")  # on time.monotonic()'s clock
log = logging.getLogger(__name__)


class TooLate(Exception):
    """A request's time is over, and nobody waits for its other pictures any more."""


class ServedModel(TaggerModel):
    """A tagger's pyfunc that stops between two pictures when a request's time is over."""

    def __init__(self, tagger: Tagger, max_pixels: int) -> None:
        self.tagger = tagger
        self.max_pixels = max_pixels

    def _decode(self, row: int, value: Any) -> NDArray[np.uint8]:
        _check_time()
        return super()._decode(row, value)

    def _tag(self, image: NDArray[np.uint8], *rest: Any) -> Any:
        _check_time()
        return super()._tag(image, *rest)


def _check_time() -> None:
    if time.monotonic() > DEADLINE.get(float("inf")):
        raise TooLate


class _Implementation:
    """What MLflow calls. MLflow answers an unknown error with its traceback; this one does not."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def predict(self, data: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        try:
            return self._model.predict(None, data, params)
        except BadRequest:
            raise
        except Exception as error:
            if not isinstance(error, TooLate):
                log.error("%s\n%s", type(error).__name__, places_of(error))
            raise MlflowException("the model failed", INTERNAL_ERROR) from None


def places_of(error: BaseException) -> str:
    """Where an error came from, without its message."""
    return "".join(traceback.format_tb(error.__traceback__))


def open_model(folder: Path, settings: Settings) -> tuple[PyFuncModel, Tagger]:
    """Open a downloaded model, and score a blank picture, so that no caller meets a cold model."""
    tagger = Tagger.load(folder / "artifacts" / "bundle", settings.threads_of_a_worker)
    tagger.score(np.zeros((1, 3, tagger.image_size_px, tagger.image_size_px), np.uint8))
    implementation = _Implementation(ServedModel(tagger, settings.pixels))
    return PyFuncModel(Model.load(str(folder)), implementation), tagger
