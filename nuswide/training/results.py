"""What a finished training records: metrics, the model and its registration, the report.

Owns its order, and what is left out of a trial of a sweep. Never trains.
"""

import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click
import numpy as np
import torch

from nuswide.config import Config
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import Manifest
from nuswide.deployment import export
from nuswide.deployment.export import LoggedModel
from nuswide.evaluation import promote, summary
from nuswide.evaluation.evaluate import Decision, Evaluation, fit_decision, predict, torch_score
from nuswide.evaluation.model_card import make_card
from nuswide.models.networks import TaggerNet
from nuswide.models.preprocessing import metadata_of, preprocessing_of
from nuswide.tracking import reader, registry
from nuswide.tracking.run import Run, scratch_folder
from nuswide.training.loop import global_batch_size
from nuswide.training.step import Best, Progress

_CHECKED = 8  # images on which the exported model must agree with torch


@dataclass(frozen=True)
class Training:
    """A finished training in a run. model: with its best weights. start: of time.perf_counter."""

    config: Config
    data: Dataset
    run: Run
    model: TaggerNet
    best: Best
    progress: Progress
    start: float


def evaluate_chosen(
    config: Config, model: TaggerNet, data: Dataset, device: torch.device
) -> tuple[Decision, list[Evaluation]]:
    """Evaluate the chosen weights on val, if any, and test; thresholds are fitted on val."""
    score = torch_score(model.to(device), device)
    parts = {split: data.of(split) for split in ("val", "test")}
    scores = {split: predict(score, part) for split, part in parts.items() if len(part)}
    val = parts["val"].manifest
    n_labels = len(val.labels)
    decision = fit_decision(config, val, scores.get("val", np.empty((0, n_labels), np.float32)))
    positives = data.manifest.of("train").positives
    return decision, [
        Evaluation(
            split, parts[split].manifest, decision.calibrate(raw), decision.thresholds, positives
        )
        for split, raw in scores.items()
    ]


def record_results(done: Training, decision: Decision, evaluations: list[Evaluation]) -> None:
    """Log and register the model, record metrics, cost and report, and print the result.

    evaluations: those of evaluate_chosen.
    """
    config, run, manifest, progress = done.config, done.run, done.data.manifest, done.progress
    chosen = _choice(done, decision)
    card = make_card(config, manifest, evaluations, choice=chosen)
    logged = _log_model(done, decision, card)
    for evaluation in evaluations:
        # A metric without a curve is at step 0, so that MLflow shows a bar. A curve ends, one step
        # after the last, with the metric of the chosen weights.
        has_curve = evaluation.split == "val" or config.test_freq or run.is_extended
        step = progress.steps + 1 if has_curve else 0
        evaluation.record(run, step=step, model_id=logged.model_id)
        evaluation.record_pictures(run, done.data.of(evaluation.split), step=step)
    cost = _cost(done)
    run.log_metrics(cost, step=progress.steps if run.is_extended else 0)
    came_out = chosen + _register(config, manifest, evaluations, logged)
    test = evaluations[-1]
    rows = summary.result_rows(evaluations)
    rows |= summary.record_baselines(run, manifest.of("train"), test)
    run.set_note(summary.note(manifest, test, rows, cost, came_out))
    if not run.is_trial:
        summary.record_report(
            run, run.name, done.data, test,
            held_out=evaluations[0] if evaluations[0].split == "val" else None,
            costs=cost, facts=_facts(config, manifest, run, came_out),
        )  # fmt: skip
    click.echo(
        f"\n{summary.results_text(rows)}\non test: {summary.headline(test)}\n\n{came_out}\n"
        f"run {run.id}\n{run.address}"
    )


def _choice(done: Training, decision: Decision) -> str:
    """Describe how weights and thresholds were chosen."""
    config, best, progress = done.config, done.best, done.progress
    weights = summary.choice(
        config, best.steps, best.map, steps=progress.steps, epochs=progress.epoch
    )
    labels = done.data.manifest.labels
    return weights + summary.unreached(config, labels, decision.thresholds)


def _cost(done: Training) -> dict[str, float]:
    """Return the speed and seconds of training, and the seconds of the run up to now."""
    progress = done.progress
    return {
        "train/images_per_s": progress.steps * global_batch_size(done.config) / progress.train_s,
        "train/seconds": progress.train_s,
        "run/seconds": time.perf_counter() - done.start,
    }


def _log_model(done: Training, decision: Decision, card: str) -> LoggedModel:
    """Export the network, check it on test images, and log it with its weights.

    Only the weights are logged of a trial, and of a network that cannot be exported and need not be
    registered.
    """
    config, run, data, model = done.config, done.run, done.data, done.model
    labels = list(data.manifest.labels)
    settings = {
        "labels": labels,
        **preprocessing_of(config).as_settings(),
        "data_digest": data.manifest.digest,
        "config": asdict(config),
    }
    test = data.of("test")
    checked = test.gather(np.arange(min(_CHECKED, len(test))))
    with scratch_folder() as folder:
        weights = folder / Path(reader.WEIGHTS).name
        digest = export.write_weights(weights, model, labels, metadata_of(config))
        run.log_file(weights, str(Path(reader.WEIGHTS).parent))
        if run.is_trial:
            return LoggedModel(None, None, None)
        name = config.registered_model
        try:
            export.write_bundle(folder / "bundle", model, settings, decision, checked)
        except export.ExportError as error:
            if name != "none":
                raise export.ExportError(
                    f"{error.message}; the model was not registered, its weights are logged"
                ) from error
            click.echo(f"only the weights are logged: {error.message}", err=True)
            return LoggedModel(None, None, None)
        logged = export.log_bundle(folder / "bundle", checked[0], name, run.id, card, digest)
    if logged.version:
        registry.tag_version(name, logged.version, {reader.WEIGHTS_TAG: digest})
    return logged


def _register(
    config: Config, manifest: Manifest, evaluations: list[Evaluation], logged: LoggedModel
) -> str:
    """Tag the new version and try it for champion; return the outcome in words."""
    if logged.version is None:
        return "It was not registered (registered_model=none)."
    name = config.registered_model
    tags: dict[str, str] = {"select_on": config.select_on}
    for evaluation in evaluations:
        tags |= evaluation.as_tags()
    registry.tag_version(name, logged.version, tags)
    fate = promote.try_for_champion(name, logged.version)
    return f"It is registered as {name} version {logged.version}. {fate}"


def _facts(config: Config, manifest: Manifest, run: Run, came_out: str) -> dict[str, str]:
    """Return the facts on model and data at the head of the report."""
    changed = {f.name: getattr(config, f.name) for f in fields(Config)}
    changed = {k: v for k, v in changed.items() if v != Config.__dataclass_fields__[k].default}
    return {
        "run": run.id,
        "outcome": came_out,
        "network": f"{config.backbone}, head {config.head}",
        "images": preprocessing_text(config),
        "protocol": manifest.protocol,
        "data digest": manifest.digest,
        "images without a label": manifest.unlabelled,
        "fields that are not the default": ", ".join(f"{k}={v}" for k, v in changed.items()),
    }


def preprocessing_text(config: Config) -> str:
    """Write the preprocessing of a resolved config in one line."""
    return (
        f"{config.image_size_px} px, fit {config.fit}, {config.interpolation}, mean {config.mean}, "
        f"std {config.std}"
    )
