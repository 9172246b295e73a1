"""`nuswide evaluate`: a registered model, or a file of scores, with the metrics of training.

Owns the two evaluations. Never trains.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.config import Config, known_fields, load_config
from nuswide.data.dataset import Dataset, load_manifest, open_dataset, read_manifest
from nuswide.data.manifest import Manifest
from nuswide.data.splits import hold_out, with_splits
from nuswide.evaluation import summary
from nuswide.evaluation.evaluate import Evaluation, fit_decision, predict
from nuswide.tagger import Tagger
from nuswide.tracking import reader, registry
from nuswide.tracking.registry import ModelVersion
from nuswide.tracking.run import Run, start_run
from nuswide.tracking.score_file import SavedScores


def evaluate_registered(
    model: str, data: str, split: str, cache: Path, *, skip_rejected: bool | None = None
) -> None:
    """Evaluate a registered model on a split of a data set, in a run of its own.

    model: models:/NAME@ALIAS or models:/NAME/VERSION. cache: the folder for decoded images.
    skip_rejected: None for what the model's training had.
    """
    version = registry.find_version(model)
    tagger = registry.load_tagger(version)
    name = f"{version.name}/{version.version}"
    columns = _matching_columns(tagger, read_manifest(data))
    whole = open_as_trained(
        version, tagger, data, cache, is_for_test=split == "test", skip_rejected=skip_rejected
    )
    part = whole.of(split)
    if not len(part):
        raise click.ClickException(f"{data} has no {split} images for {model}; give another split")
    with start_run("evaluate", f"{name} on {split}") as run:
        run.log_params({"model": model, "data": data, "split": split})
        run.set_tags({"model.version": name})
        run.log_dataset(part.manifest, split)
        evaluation = Evaluation(
            split, part.manifest, predict(tagger.score, part)[:, columns],
            tagger.thresholds.astype(np.float32)[columns], _train_positives(version, whole),
        )  # fmt: skip
        evaluation.record(run, step=0, model_id=registry.model_id_of(version))
        evaluation.record_pictures(run, part, step=0)
        facts = {
            "model": name, "data": data, "protocol": part.manifest.protocol,
            "data digest": whole.manifest.digest, "run": run.id,
        }  # fmt: skip
        summary.record_report(
            run, f"{name} on {split}", whole, evaluation,
            held_out=evaluation if split == "val" else None, costs={}, facts=facts,
        )  # fmt: skip
        _conclude(run, name, data, evaluation)


def open_as_trained(
    version: ModelVersion,
    tagger: Tagger,
    data: str,
    cache: Path,
    *,
    is_for_test: bool = False,
    skip_rejected: bool | None = None,
) -> Dataset:
    """Open a data set as the model's training run did, so that val and test have the same images.

    The splits are those that the run recorded or, for other data, the data's own, with val carved
    as in training unless `is_for_test`. Test is never carved out of other data, which may have
    images that the model was trained on. skip_rejected: None for what training had.
    """
    config = known_fields(tagger.config)
    skip = config["skip_rejected"] if skip_rejected is None else skip_rejected
    whole = open_dataset(
        load_manifest(data, skip_rejected=skip),
        tagger.preprocessing,
        folder=cache,
        skip_rejected=skip,
    )
    recorded = reader.fetch_splits(version.run_id) if version.run_id else None
    as_recorded = with_splits(whole.manifest, recorded) if recorded else None
    if as_recorded is not None:
        return replace(whole, manifest=as_recorded)
    val_fraction = 0.0 if is_for_test else config["val_fraction"]
    has_train, has_val = (len(whole.manifest.indices(split)) for split in ("train", "val"))
    if recorded and val_fraction and has_train and not has_val:
        click.echo(f"{data} is not as the model was trained on it; val is drawn anew", err=True)
    carved = hold_out(
        whole.manifest,
        test_fraction=0.0 if recorded else config["test_fraction"],
        val_fraction=val_fraction,
        seed=config["split_seed"],
        folds=0 if is_for_test else config["folds"],
        fold=config["fold"],
    )
    return replace(whole, manifest=carved)


def _train_positives(version: ModelVersion, whole: Dataset) -> NDArray[np.int64] | None:
    """Return the number of images with each of the data's labels that the model was trained on.

    If its run is gone or did not record them, those of the data's own train; None without one.
    """
    counts = reader.fetch_label_counts(version.run_id) if version.run_id else None
    if counts is None:
        train = whole.manifest.of("train")
        return train.positives if len(train) else None
    return np.array([counts.get(label, 0) for label in whole.manifest.labels], dtype=np.int64)


def _matching_columns(tagger: Tagger, manifest: Manifest) -> list[int]:
    """Return the model's columns in the order of the data's labels."""
    unknown = [label for label in manifest.labels if label not in tagger.labels]
    if unknown:
        raise click.ClickException(
            f"the model does not know {len(unknown)} of the data's labels, {unknown[0]!r} first; "
            f"it knows: {', '.join(tagger.labels)}"
        )
    return [tagger.labels.index(label) for label in manifest.labels]


def evaluate_scores(
    path: Path, data: str, split: str, *, thresholds: str, threshold: float, goal: str = "f1"
) -> None:
    """Evaluate the scores of another program in a run of their own; needs no images.

    path: an npz or CSV, see score_file.SavedScores. thresholds: fixed (at `threshold`), or global
    or label, fitted on the data's own val split, for which the file must have scores, too. goal:
    what they are fitted to, as in Config.threshold_goal.
    """
    if thresholds == "fixed" and goal != "f1":
        raise click.UsageError(
            f"threshold_goal={goal} is what thresholds are fitted to, and thresholds=fixed fits "
            "none; give thresholds=label or global"
        )
    saved = SavedScores.load(path)
    manifest = read_manifest(data)
    samples = manifest.of(split)
    if not len(samples):
        raise click.ClickException(f"{data} has no {split} images; give another split")
    if thresholds != "fixed" and not len(manifest.indices("val")):
        raise click.ClickException(
            f"thresholds={thresholds} is fitted on val, and {data} has no val split; "
            "give thresholds=fixed, or prepare the data with a --split_file"
        )
    config = load_config(
        None, {"thresholds": thresholds, "threshold": threshold, "threshold_goal": goal}
    )
    evaluation = _evaluate_saved(saved, manifest, split, config)
    with start_run("evaluate", f"{path.stem} on {split}") as run:
        run.log_params({
            "scores": path, "data": data, "split": split, "thresholds": thresholds,
            "threshold": threshold, "threshold_goal": goal,
        })  # fmt: skip
        run.log_dataset(samples, split)
        evaluation.record(run, step=0)
        _conclude(run, path.name, data, evaluation)


def _evaluate_saved(
    saved: SavedScores, manifest: Manifest, split: str, config: Config
) -> Evaluation:
    """Evaluate scores on a split, with thresholds that are fitted on val unless they are fixed."""
    fitted_on = manifest.take(np.arange(0)) if config.thresholds == "fixed" else manifest.of("val")
    decision = fit_decision(config, fitted_on, saved.for_samples(fitted_on))
    samples, positives = manifest.of(split), manifest.of("train").positives
    return Evaluation(split, samples, saved.for_samples(samples), decision.thresholds, positives)


def _conclude(run: Run, name: str, data: str, evaluation: Evaluation) -> None:
    """Describe the results on the run's page and in the terminal."""
    table = summary.results_text({f"{name}, {evaluation.split}": evaluation.metrics})
    headline = summary.headline(evaluation)
    digest = evaluation.samples.digest
    run.set_note(f"**{headline}**\n\n```\n{table}\n```\nData: `{data}`, digest `{digest}`.")
    click.echo(f"{table}\n{headline}\nrun {run.id}\n{run.address}")
