"""`nuswide evaluate`: a registered model, or a file of scores, with the metrics of training.

Owns the two evaluations. Never trains.
"""

from pathlib import Path

import click
import numpy as np

from nuswide.config import known_fields, load_config
from nuswide.data.dataset import Dataset, load_manifest, open_dataset, read_manifest
from nuswide.data.manifest import Manifest
from nuswide.evaluation import summary
from nuswide.evaluation.evaluate import Evaluation, fit_decision, predict
from nuswide.tagger import Tagger
from nuswide.tracking import registry
from nuswide.tracking.run import Run, start_run
from nuswide.tracking.score_file import SavedScores


def evaluate_registered(model: str, data: str, split: str, cache: Path) -> None:
    """Evaluate a registered model on a split of a data set, in a run of its own.

    model: models:/NAME@ALIAS or models:/NAME/VERSION. val is carved as the model's own run did.
    cache: the folder for decoded images.
    """
    version = registry.find_version(model)
    tagger = registry.load_tagger(version)
    name = f"{version.name}/{version.version}"
    columns = _matching_columns(tagger, load_manifest(data))
    whole = open_as_trained(tagger, data, cache)
    part = whole.of(split)
    if not len(part):
        raise click.ClickException(f"{data} has no {split} images for {model}; give another split")
    with start_run("evaluate", f"{name} on {split}") as run:
        run.log_params({"model": model, "data": data, "split": split})
        run.set_tags({"model.version": name})
        run.log_dataset(part.manifest, split)
        evaluation = Evaluation(
            split, part.manifest, predict(tagger.score, part)[:, columns],
            tagger.thresholds.astype(np.float32)[columns], whole.manifest.of("train").positives,
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


def open_as_trained(tagger: Tagger, data: str, cache: Path) -> Dataset:
    """Open a data set as the model's training run did, so that val has the same images."""
    config = known_fields(tagger.config)
    whole = open_dataset(
        load_manifest(data),
        tagger.preprocessing,
        folder=cache,
        skip_rejected=config["skip_rejected"],
    )
    return whole.carve_val(fraction=config["val_fraction"], seed=config["split_seed"])


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
    saved = SavedScores.load(path)
    manifest = read_manifest(data)
    samples, val = manifest.of(split), manifest.of("val")
    if not len(samples):
        raise click.ClickException(f"{data} has no {split} images; give another split")
    if thresholds != "fixed" and not len(val):
        raise click.ClickException(
            f"thresholds={thresholds} is fitted on val, and {data} has no val split; "
            "give thresholds=fixed, or prepare the data with a --split_file"
        )
    config = load_config(
        None, {"thresholds": thresholds, "threshold": threshold, "threshold_goal": goal}
    )
    fitted_on = manifest.take(np.arange(0)) if thresholds == "fixed" else val
    decision = fit_decision(config, fitted_on, saved.for_samples(fitted_on))
    positives = manifest.of("train").positives
    evaluation = Evaluation(
        split, samples, saved.for_samples(samples), decision.thresholds, positives
    )
    with start_run("evaluate", f"{path.stem} on {split}") as run:
        run.log_params({
            "scores": path, "data": data, "split": split, "thresholds": thresholds,
            "threshold": threshold, "threshold_goal": goal,
        })  # fmt: skip
        run.log_dataset(samples, split)
        evaluation.record(run, step=0)
        _conclude(run, path.name, data, evaluation)


def _conclude(run: Run, name: str, data: str, evaluation: Evaluation) -> None:
    """Describe the results on the run's page and in the terminal."""
    table = summary.results_text({f"{name}, {evaluation.split}": evaluation.metrics})
    headline = summary.with_intervals(evaluation)
    digest = evaluation.samples.digest
    run.set_note(f"**{headline}**\n\n```\n{table}\n```\nData: `{data}`, digest `{digest}`.")
    click.echo(f"{table}\n{headline}\nrun {run.id}\n{run.address}")
