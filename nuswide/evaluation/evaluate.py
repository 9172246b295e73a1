"""Scores of a split, computed once, and everything that is recorded of them.

Owns predict(), Decision and Evaluation. Never trains, nor cares whether torch or ONNX Runtime
scores, or another program did.

    scores = predict(tagger.score, data)
    Evaluation("test", data.manifest, scores, thresholds=0.5).record(run, step=0)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from nuswide import metrics
from nuswide.config import Config
from nuswide.core import distributed
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.metrics import NINE, Calibration, fit_calibration, fit_thresholds
from nuswide.models.networks import Scorer
from nuswide.reporting import plots
from nuswide.tracking.run import Run, scratch_folder
from nuswide.tracking.score_file import FILE, SavedScores

Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
HEADLINE = ("map", "micro/f1", "macro/f1", "samples/f1")
CURVES = (*NINE, "map")
_BATCH = 64
_SHOWN = 12


def torch_score(
    model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
) -> Score:
    """Make a function that scores uint8 images (N, 3, S, S) with a network, in eval mode.

    dtype: of the arithmetic inside.
    """
    scorer = Scorer(model)

    def score(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        was_training = {module: module.training for module in model.modules()}
        scorer.eval()
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            scores: NDArray[np.float32] = scorer(torch.from_numpy(images).to(device)).cpu().numpy()
        for module, training in was_training.items():
            module.training = training
        return scores

    return score


def predict(score: Score, data: Dataset) -> NDArray[np.float32]:
    """Score all samples in their order; (N, C), in every process.

    Many processes share whole batches out, so that the scores are those of one process.
    """
    batches = np.array_split(np.arange(len(data)), range(_BATCH, len(data), _BATCH))
    own = batches[distributed.rank() :: distributed.world_size()]
    quiet = None if distributed.is_main() else True
    progress = tqdm(own, "scoring", unit="batch", disable=quiet, leave=False)
    scores = [score(data.gather(batch)) for batch in progress]
    return np.concatenate(distributed.gather_batches(scores, len(batches)))


@dataclass(frozen=True)
class Decision:
    """How scores become predictions: fitted on val alone, and stored in the model.

    thresholds: (C,); a label is predicted at its own or above. calibration: what scores go through
    first, None to leave them as they are.
    """

    thresholds: NDArray[np.float32]
    calibration: Calibration | None = None

    def calibrate(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map a network's scores (N, C) to those that the thresholds are for."""
        return self.calibration.apply(scores) if self.calibration else scores

    def as_settings(self) -> dict[str, Any]:
        """Give it in the form of the served model's settings."""
        settings: dict[str, Any] = {"thresholds": self.thresholds.tolist()}
        if self.calibration:
            scale, shift = self.calibration.scale.tolist(), self.calibration.shift.tolist()
            settings["calibration"] = {"scale": scale, "shift": shift}
        return settings


def fit_decision(config: Config, val: Manifest, scores: NDArray[np.float32]) -> Decision:
    """Fit what the config asks for to a network's scores (N, C) of val, which may have no sample.

    thresholds=auto fits one for each label where there is a val split.
    """
    kind = {"auto": "label" if len(val) else "fixed"}.get(config.thresholds, config.thresholds)
    calibration = None
    if config.calibration != "none":
        calibration = fit_calibration(config.calibration, val.targets, scores, val.known)
        scores = calibration.apply(scores)
    fitted = fit_thresholds(kind, val.targets, scores, val.known, fixed=config.threshold)
    return Decision(fitted, calibration)


@dataclass(frozen=True)
class Evaluation:
    """The scores (N, C) of one split's samples, and what follows from them.

    thresholds: one, or (C,). train_positives: (C,), for the figures of frequent and rare labels.
    """

    split: str
    samples: Manifest
    scores: NDArray[np.float32]
    thresholds: metrics.Thresholds
    train_positives: NDArray[np.int64] | None = None

    @cached_property
    def figures(self) -> metrics.Metrics:
        """Every figure: `map`, `micro/f1` ..."""
        return self._figures_at(self.thresholds)

    @cached_property
    def curves(self) -> metrics.Metrics:
        """The few figures that are worth a curve, under the split's name: `val/map` ..."""
        samples = self.samples
        predictions = metrics.Predictions(
            samples.targets, self.scores, self.thresholds, samples.known
        )
        found = metrics.precision_recall_f1(predictions) | metrics.average_precisions(predictions)
        return {f"{self.split}/{name}": found[name] for name in CURVES}

    @cached_property
    def resampled(self) -> metrics.Resampled:
        """The headline figures on many halves of the images, for intervals and comparisons."""
        samples = self.samples
        return metrics.resample(samples.targets, self.scores, self.thresholds, samples.known)

    @property
    def prefixed(self) -> metrics.Metrics:
        """All figures under the split's name: `test/map` ..."""
        return {f"{self.split}/{name}": value for name, value in self.figures.items()}

    def as_tags(self) -> dict[str, str]:
        """The headline figures and the samples' digest, as tags of a registered version."""
        figures = {f"{self.split}/{k}": f"{self.figures[k]:.6f}" for k in HEADLINE}
        return {**figures, f"{self.split}_digest": self.samples.digest}

    def table(self) -> dict[str, list[Any]]:
        """Columns of every figure, its 95 % interval where it has one, and what 0.5 would give."""
        intervals = self.resampled.intervals()
        at_half = self._figures_at(0.5)
        bounds = [intervals.get(name, (None, None, None))[1:] for name in self.figures]
        return {
            "figure": list(self.figures),
            "value": [_rounded(value) for value in self.figures.values()],
            "low": [_rounded(low) for low, _ in bounds],
            "high": [_rounded(high) for _, high in bounds],
            "at threshold 0.5": [_rounded(at_half[name]) for name in self.figures],
        }

    def record(self, run: Run, *, step: int, model_id: str | None = None) -> None:
        """Record figures, tables and the scores themselves, tied to the model."""
        run.log_result(self.prefixed, split=self.split, step=step, model_id=model_id)
        samples, split = self.samples, self.split
        labels = metrics.per_label_table(
            samples.labels, samples.targets, self.scores, self.thresholds, samples.known
        )
        run.log_table(labels, f"{split}/per_label.json")
        run.log_table(self.table(), f"{split}/figures.json")
        with scratch_folder() as folder:
            thresholds = np.broadcast_to(np.float32(self.thresholds), len(samples.labels))
            SavedScores.of(samples, self.scores, thresholds).save(folder / FILE)
            run.log_file(folder / FILE, split)

    def record_pictures(self, run: Run, data: Dataset, *, step: int) -> None:
        """Record a few pictures, always the same ones, with their true and predicted labels."""
        samples = self.samples
        count = min(_SHOWN, len(samples))
        chosen = np.sort(np.random.default_rng(0).choice(len(samples), count, replace=False))
        figure = plots.prediction_grid(
            data.gather(chosen),
            samples.labels,
            samples.targets[chosen],
            self.scores[chosen],
            self.thresholds,
            f"{self.split}, step {step}",
        )
        run.log_image(plots.to_image(figure), f"{self.split}/predictions", step=step)

    def _figures_at(self, thresholds: metrics.Thresholds) -> metrics.Metrics:
        samples = self.samples
        return metrics.all_metrics(
            samples.targets, self.scores, thresholds, samples.known,
            train_positives=self.train_positives,
        )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 4)


def headline(figures: metrics.Metrics, split: str) -> str:
    """The few figures of a split that stand for the rest, in one line."""
    return "  ".join(f"{name} {figures[f'{split}/{name}']:.3f}" for name in HEADLINE)


def baseline_key(baseline: str, figure: str) -> str:
    """The name under which a trivial baseline's figure on test is recorded."""
    return f"test_baselines/{baseline}_{figure.replace('/', '_')}"
