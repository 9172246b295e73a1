"""Scores of a split, computed once, and everything that is recorded of them.

Owns predict(), Decision and Evaluation. Never trains. Scores may come from torch, ONNX Runtime or
another program.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.metrics import (
    NINE,
    Calibration,
    Metrics,
    Predictions,
    Resampled,
    Thresholds,
    all_metrics,
    fit_calibration,
    fit_thresholds,
    per_label_table,
    resample,
)
from nuswide.metrics.decisions import precision_recall_f1
from nuswide.metrics.ranking import average_precisions
from nuswide.models.networks import Scorer, TaggerNet
from nuswide.reporting import plots
from nuswide.tracking.run import Run, scratch_folder
from nuswide.tracking.score_file import FILE, SavedScores

# From inputs (N, ...), see Dataset.inputs, to scores (N, C).
Score = Callable[[NDArray[Any]], NDArray[np.float32]]
# Shown in one line, in tables of runs, and as tags of a registered version.
SUMMARY = ("map", "micro/f1", "macro/f1", "samples/f1")
CURVES = (*NINE, "map")
_BATCH = 64
_SHOWN = 12


def torch_score(
    model: TaggerNet, device: torch.device, dtype: torch.dtype = torch.float32
) -> Score:
    """Return a function that scores uint8 images (N, 3, S, S) with a network, in eval mode.

    It also scores float feature maps (N, F, h, w), with the head alone. dtype: of the arithmetic
    inside.
    """
    scorer = Scorer(model)

    def score(inputs: NDArray[Any]) -> NDArray[np.float32]:
        was_training = {module: module.training for module in model.modules()}
        scorer.eval()
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            batch = torch.from_numpy(inputs).to(device)
            found = scorer(batch) if batch.dtype == torch.uint8 else scorer.of_features(batch)
            scores: NDArray[np.float32] = found.cpu().numpy()
        for module, training in was_training.items():
            module.training = training
        return scores

    return score


def predict(score: Score, data: Dataset) -> NDArray[np.float32]:
    """Score all samples in their order; (N, C), in every process.

    Processes score whole batches in turn, so that the scores equal those of one process.
    """
    batches = np.array_split(np.arange(len(data)), range(_BATCH, len(data), _BATCH))
    own = batches[distributed.rank() :: distributed.world_size()]
    quiet = None if distributed.is_main() else True
    progress = tqdm(own, "scoring", unit="batch", disable=quiet, leave=False)
    scores = [score(data.gather_inputs(batch)) for batch in progress]
    return np.concatenate(distributed.gather_batches(scores, len(batches)))


@dataclass(frozen=True)
class Decision:
    """Calibration and thresholds, which turn scores into predictions. Fitted on val only.

    thresholds: (C,); a label is predicted at its threshold or above. calibration: applied to the
    scores first, None for none.
    """

    thresholds: NDArray[np.float32]
    calibration: Calibration | None = None

    def calibrate(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the calibrated scores (N, C), to which the thresholds apply."""
        return self.calibration.apply(scores) if self.calibration else scores

    def as_settings(self) -> dict[str, Any]:
        """Return it in the form of the served model's settings."""
        settings: dict[str, Any] = {"thresholds": self.thresholds.tolist()}
        if self.calibration:
            scale, shift = self.calibration.scale.tolist(), self.calibration.shift.tolist()
            settings["calibration"] = {"scale": scale, "shift": shift}
        return settings


def fit_decision(config: Config, val: Manifest, scores: NDArray[np.float32]) -> Decision:
    """Fit calibration and thresholds, as the config says, to a network's scores of val.

    scores: (N, C), of which there may be none.
    thresholds=auto fits one for each label where there is a val split.
    """
    kind = {"auto": "label" if len(val) else "fixed"}.get(config.thresholds, config.thresholds)
    calibration = None
    if config.calibration != "none":
        calibration = fit_calibration(config.calibration, val.targets, scores, val.known)
        scores = calibration.apply(scores)
    fitted = fit_thresholds(
        kind, val.targets, scores, val.known, fixed=config.threshold, goal=config.threshold_goal
    )
    return Decision(fitted, calibration)


@dataclass(frozen=True)
class Evaluation:
    """The scores (N, C) of one split's samples, and the metrics computed from them.

    thresholds: one, or (C,). train_positives: (C,), for the metrics of frequent and rare labels.
    """

    split: str
    samples: Manifest
    scores: NDArray[np.float32]
    thresholds: Thresholds
    train_positives: NDArray[np.int64] | None = None

    @cached_property
    def metrics(self) -> Metrics:
        """Return every metric: `map`, `micro/f1` ..."""
        return self._metrics_at(self.thresholds)

    @cached_property
    def curves(self) -> Metrics:
        """Return the metrics logged during training, under the split's name: `val/map` ..."""
        samples = self.samples
        predictions = Predictions(samples.targets, self.scores, self.thresholds, samples.known)
        found = precision_recall_f1(predictions) | average_precisions(predictions)
        return {f"{self.split}/{name}": found[name] for name in CURVES}

    @cached_property
    def resampled(self) -> Resampled:
        """Return the headline metrics resampled, for intervals and comparisons."""
        samples = self.samples
        return resample(samples.targets, self.scores, self.thresholds, samples.known)

    @property
    def prefixed(self) -> Metrics:
        """Return all metrics under the split's name: `test/map` ..."""
        return {f"{self.split}/{name}": value for name, value in self.metrics.items()}

    def as_tags(self) -> dict[str, str]:
        """Return the summary metrics and the samples' digest as tags of a registered version."""
        summary = {f"{self.split}/{k}": f"{self.metrics[k]:.6f}" for k in SUMMARY}
        return {**summary, f"{self.split}_digest": self.samples.digest}

    def table(self) -> dict[str, list[Any]]:
        """Return columns: each metric, its 95 % interval if it has one, and its value at 0.5."""
        intervals = self.resampled.intervals()
        at_half = self._metrics_at(0.5)
        bounds = [intervals.get(name, (None, None, None))[1:] for name in self.metrics]
        return {
            "figure": list(self.metrics),
            "value": [_rounded(value) for value in self.metrics.values()],
            "low": [_rounded(low) for low, _ in bounds],
            "high": [_rounded(high) for _, high in bounds],
            "at threshold 0.5": [_rounded(at_half[name]) for name in self.metrics],
        }

    def record(self, run: Run, *, step: int, model_id: str | None = None) -> None:
        """Record metrics, tables and the scores themselves, tied to the model."""
        run.log_result(self.prefixed, split=self.split, step=step, model_id=model_id)
        samples, split = self.samples, self.split
        labels = per_label_table(
            samples.labels, samples.targets, self.scores, self.thresholds, samples.known
        )
        run.log_table(labels, f"{split}/per_label.json")
        run.log_table(self.table(), f"{split}/figures.json")
        with scratch_folder() as folder:
            thresholds = np.broadcast_to(np.float32(self.thresholds), len(samples.labels))
            SavedScores.of(samples, self.scores, thresholds).save(folder / FILE)
            run.log_file(folder / FILE, split)

    def record_pictures(self, run: Run, data: Dataset, *, step: int) -> None:
        """Record a few images, always the same, with their true and predicted labels."""
        if run.is_trial:
            return
        samples = self.samples
        count = min(_SHOWN, len(samples))
        chosen = np.sort(np.random.default_rng(0).choice(len(samples), count, replace=False))
        plot = plots.prediction_grid(
            data.gather(chosen),
            samples.labels,
            samples.targets[chosen],
            self.scores[chosen],
            self.thresholds,
            f"{self.split}, step {step}",
        )
        run.log_image(plots.to_image(plot), f"{self.split}/predictions", step=step)

    def _metrics_at(self, thresholds: Thresholds) -> Metrics:
        samples = self.samples
        return all_metrics(
            samples.targets, self.scores, thresholds, samples.known,
            train_positives=self.train_positives,
        )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else round(float(value), 4)


def summary_line(metrics: Metrics, split: str) -> str:
    """Write the summary metrics of a split in one line."""
    return "  ".join(f"{name} {metrics[f'{split}/{name}']:.3f}" for name in SUMMARY)


def baseline_key(baseline: str, metric: str) -> str:
    """Return the key under which a trivial baseline's metric on test is recorded."""
    return f"test_baselines/{baseline}_{metric.replace('/', '_')}"
