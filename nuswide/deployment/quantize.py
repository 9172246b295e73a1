"""Static quantization: an int8 variant of a registered model, registered if it is as good.

It is calibrated on images of train and compared on val. Aliases are not moved.

The network's body runs in int8, with one weight scale a channel (Jacob et al. 2018,
arXiv:1712.05877); normalisation and sigmoid run in float32.
"""

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from nuswide import metrics
from nuswide.config import Config, known_fields, load_config
from nuswide.data.dataset import Dataset
from nuswide.data.splits import splits_csv
from nuswide.deployment import export
from nuswide.deployment.export import LoggedModel
from nuswide.evaluation import summary
from nuswide.evaluation.commands import open_as_trained
from nuswide.evaluation.evaluate import Evaluation, fit_decision, predict
from nuswide.evaluation.model_card import make_card
from nuswide.tagger import Tagger
from nuswide.tracking import reader, registry
from nuswide.tracking.run import Run, scratch_folder, start_run

_NETWORK = "model.onnx"
_BODY = ["Conv", "Add", "Relu", "MaxPool", "GlobalAveragePool", "Gemm", "MatMul"]
_TIMED = 20  # images, scored one at a time


def quantize(
    model: str, *, data: str | None, cache: Path, images: int = 256, most_lost: float = 0.005
) -> None:
    """Register an int8 variant of a registered model as a new version of it.

    data: the model's data set; None for where it was in training. images: number of train images
    for calibration. most_lost: the largest accepted loss of mAP on val; if int8 loses more, raises
    click.ClickException and registers nothing.
    """
    version = registry.find_version(model)
    source = registry.fetch_bundle(version)
    settings = json.loads((source / "tagger.json").read_text(encoding="utf-8"))
    tagger = Tagger.load(source)
    config = _config_of(tagger, data)
    whole = open_as_trained(version, tagger, config.data, cache)
    address = registry.address_of(version)
    _require_same(whole, settings.get("data_digest"), config.data, address)
    name = f"{version.name}/{version.version} int8"
    with start_run("quantize", name) as run, scratch_folder() as scratch:
        own = {"quantized_from": address, "calibration_images": images, "most_lost": most_lost}
        run.log_params({**asdict(config), **own})
        run.log_text(splits_csv(whole.manifest), reader.SPLITS_FILE)
        folder = scratch / "bundle"
        shutil.copytree(source, folder)
        chosen = _choose(whole.of("train"), images, seed=config.seed)
        quantize_network(source / _NETWORK, folder / _NETWORK, chosen)
        small = Tagger.load(folder)
        evaluations = _evaluate(config, settings, small, folder, whole)
        words = _compare(run, tagger, small, evaluations[0], whole.of("val"), most_lost)
        choice = f"Quantized to int8 from version {version.version}: {words}."
        card = make_card(config, whole.manifest, evaluations, choice=choice)
        logged = export.log_bundle(folder, chosen[0], version.name, run.id, card)
        _record(run, version, evaluations, logged, words)


def _config_of(tagger: Tagger, data: str | None) -> Config:
    """Return the configuration of the model's training, as fields of this version."""
    return load_config(None, known_fields(tagger.config) | ({"data": data} if data else {}))


def _require_same(whole: Dataset, digest: str | None, data: str, address: str) -> None:
    """Raise click.ClickException for other data: their val may contain the model's train images."""
    if whole.manifest.digest != digest:
        raise click.ClickException(
            f"{data} (digest {whole.manifest.digest}) is not what {address} was trained on "
            f"({digest}); give --data with that"
        )
    if not len(whole.manifest.indices("val")):
        raise click.ClickException(
            f"{address} was trained without a val split, which int8 is compared on; train with one"
        )
    if not whole.manifest.of("val").targets.any():
        raise click.ClickException(
            f"no val image of {data} has a label, so that mAP, by which int8 is compared, is "
            "undefined; label some, and train again"
        )


def _choose(train: Dataset, count: int, *, seed: int) -> NDArray[np.uint8]:
    count = min(count, len(train))
    return train.gather(np.sort(np.random.default_rng(seed).choice(len(train), count, False)))


class _Reader(quantization.CalibrationDataReader):
    """The calibration images, one by one."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        bar = tqdm(images, "calibrating", unit="image", leave=False, disable=None)
        self.left: Iterator[NDArray[np.uint8]] = iter(bar)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the network's next input, None after the last one."""
        image = next(self.left, None)
        return None if image is None else {"images": image[None]}


def quantize_network(source: Path, target: Path, images: NDArray[np.uint8]) -> None:
    """Write an int8 variant of a network, calibrated on images (N, 3, S, S) uint8."""
    prepared = target.with_suffix(".prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        target,
        _Reader(images),
        op_types_to_quantize=_BODY,
        per_channel=True,
        # Weights of 7 bits: on processors without VNNI the sum of two 8-bit products overflows 16
        # bits, so a model that is accurate here would not be accurate there.
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    prepared.unlink()


def _evaluate(
    config: Config, settings: dict[str, Any], small: Tagger, folder: Path, whole: Dataset
) -> list[Evaluation]:
    """Fit calibration and thresholds on val, write them to the bundle; evaluate val and test."""
    parts = {split: whole.of(split) for split in ("val", "test")}
    raw = {split: predict(small.network_scores, part) for split, part in parts.items()}
    decision = fit_decision(config, parts["val"].manifest, raw["val"])
    export.write_settings(folder, settings, decision)
    positives = whole.manifest.of("train").positives
    return [
        Evaluation(
            split, part.manifest, decision.calibrate(raw[split]), decision.thresholds, positives
        )
        for split, part in parts.items()
    ]


def _compare(
    run: Run, tagger: Tagger, small: Tagger, after: Evaluation, val: Dataset, most_lost: float
) -> str:
    """Log the difference in mAP and the times; return them in words.

    Raises click.ClickException if int8 loses more than most_lost.
    """
    before = Evaluation("val", val.manifest, predict(tagger.network_scores, val), 0.5)
    value, low, high, _ = metrics.paired(after.resampled, before.resampled)["map"]
    times = _median_ms({"float": tagger, "int8": small}, val)
    run.log_metrics({f"{name}/median_ms": ms for name, ms in times.items()}, step=0)
    maps = {"float/val_map": before.metrics["map"], "int8/val_map_difference": value}
    run.log_metrics(maps, step=0)
    words = (
        f"val mAP {value:+.4f} [{low:+.4f}, {high:+.4f}] against {before.metrics['map']:.4f} in "
        f"float, an image in {times['int8']:.1f} ms against {times['float']:.1f} ms"
    )
    if not value >= -most_lost:
        raise click.ClickException(
            f"int8 loses too much: {words}; the limit is {most_lost:g} of mAP, so nothing was "
            "registered. More --images may help"
        )
    return words


def _record(
    run: Run,
    version: ModelVersion,
    evaluations: list[Evaluation],
    logged: LoggedModel,
    words: str,
) -> None:
    """Log the metrics to the run and onto the new version, and print the result."""
    tags = {"precision": "int8", "quantized_from": str(version.version)}
    for evaluation in evaluations:
        run.log_dataset(evaluation.samples, evaluation.split)
        evaluation.record(run, step=0, model_id=logged.model_id)
        tags |= evaluation.as_tags()
    registry.tag_version(version.name, str(logged.version), tags)
    table = summary.results_text(summary.result_rows(evaluations))
    result = f"{words}\nIt is registered as models:/{version.name}/{logged.version}."
    run.set_note(f"{result}\n\n```\n{table}\n```")
    click.echo(f"{table}\n\n{result}\nrun {run.id}\n{run.address}")


def _median_ms(taggers: Mapping[str, Tagger], val: Dataset) -> dict[str, float]:
    """Return each tagger's median time an image; they alternate, under the same machine load."""
    times: dict[str, list[float]] = {name: [] for name in taggers}
    for image in val.gather(np.arange(min(_TIMED, len(val)))):
        for name, tagger in taggers.items():
            start = time.perf_counter()
            tagger.score(image[None])
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}
