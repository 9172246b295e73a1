"""The two jobs that make a run: train and evaluate, from start to end.

Owns the order of things and the words on a run's page. Every part is in a lower module.

    train_and_register(load_config(Path("experiments/sample.yaml"), {}), name="sample")
"""

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml

from nuswide import audit, bundle, checkpoint, distributed, plots, registry, runs
from nuswide.bundle import LoggedModel
from nuswide.checkpoint import LAST, Writer
from nuswide.config import Config
from nuswide.data import Dataset, load_manifest, open_dataset, read_manifest
from nuswide.evaluate import HEADLINE, Evaluation, baseline_key, predict, torch_score
from nuswide.manifest import SPLITS, Manifest
from nuswide.metrics import Figures, baseline_figures
from nuswide.models import TaggerNet, create_model
from nuswide.step import Best, State, choose_device
from nuswide.tagger import Tagger
from nuswide.tracking import NullRun, Run, scratch_folder, send_spool, start_run
from nuswide.train import fit, global_batch_size

_MOST_HASHED = 20_000  # pictures in which each run looks for duplicates; more take minutes
_AUDIT_PX = 64  # enough to tell pictures apart, and to see them
_CHECKED = 8  # pictures on which the exported model must agree with torch


def train_and_register(config: Config, *, name: str) -> None:
    """Train by a config in one MLflow run, evaluate the chosen weights, and register them.

    Of many processes, each trains, and the main one writes.
    """
    start = time.perf_counter()
    with distributed.process_group(choose_device(config.device)):
        manifest = load_manifest(config.data)
        _require_enough(config, manifest)
        model = create_model(config, n_labels=len(manifest.labels))
        data = _open(config, manifest)
        found = distributed.tell(
            runs.find(config, data.manifest) if distributed.is_main() else None
        )
        with _begin(config, data, name, found) as (run, folder):
            with Writer(folder / LAST) as writer:
                best, state = fit(config, model, data, run, writer, found[1] if found else None)
            model.load_state_dict(best.weights)
            evaluations = _evaluate(config, model, data, state.device)
            if distributed.is_main():
                seconds = time.perf_counter() - start
                _record_outcome(config, model, data, run, best, state, evaluations, seconds)


@contextmanager
def _begin(
    config: Config, data: Dataset, name: str, found: tuple[str, checkpoint.State | None] | None
) -> Iterator[tuple[Run, Path]]:
    """Begin a run, or go on with the one found; gives it, and the folder of its state.

    An error leaves the state in the folder, and the way to go on is printed.
    """
    if not distributed.is_main():
        yield NullRun(), Path(config.checkpoints)  # type: ignore[misc]
        return
    run_id, state = found or (None, None)
    folder = Path(config.checkpoints)
    mark = state["mark"] if state else 0
    with start_run("train", name, run_id=run_id, spool=folder, mark=mark) as run:
        place = folder / run.id
        with runs.alone(place):
            runs.write_about(place, config, data.manifest, is_recorded=False)
            _record_splits(run, data.manifest)
            if state:
                click.echo(f"going on with run {run_id} after {state['progress']['steps']} steps")
            else:
                run.log_params({**asdict(config), **_batch_sizes(config)})
                run.log_text(yaml.safe_dump(asdict(config), sort_keys=False), "config.yaml")
                _record_data(run, data)
            try:
                yield run, place
            except KeyboardInterrupt:
                click.echo(f"\ninterrupted; go on with\n  {_resume_command(run.id)}")
                raise
            runs.write_about(place, config, data.manifest, is_recorded=True)


def _batch_sizes(config: Config) -> dict[str, int]:
    return {
        "processes": distributed.world_size(),
        "global_batch_size": global_batch_size(config),
    }


def _resume_command(run_id: str) -> str:
    """The command that this process was started with, made to go on with a run."""
    given = sys.argv[1:]
    if "--resume" in given:
        place = given.index("--resume")
        given = given[:place] + given[place + 2 :]
    if "MLFLOW_RUN_ID" in os.environ:  # started by `mlflow run`
        pairs = zip(given[1::2], given[2::2], strict=False)
        options = " ".join(f"-P {k.removeprefix('--')}={shlex.quote(v)}" for k, v in pairs)
        return f"mlflow run . {options} -P resume={run_id}"
    return f"python -m nuswide {shlex.join(given)} --resume {run_id}"


def _evaluate(
    config: Config, model: TaggerNet, data: Dataset, device: torch.device
) -> list[Evaluation]:
    """Evaluate the chosen weights on val, if there is one, and on test, in full precision."""
    score = torch_score(model.to(device), device)
    return [
        Evaluation(split, part, predict(score, part), config.threshold)
        for split in ("val", "test")
        if len(part := data.of(split))
    ]


def _record_outcome(
    config: Config,
    model: TaggerNet,
    data: Dataset,
    run: Run,
    best: Best,
    state: State,
    evaluations: list[Evaluation],
    seconds: float,
) -> None:
    """Record the figures, the model and the cost, and print them."""
    manifest, progress = data.manifest, state.progress
    logged = _log_model(run, config, model, data)
    for evaluation in evaluations:
        # A figure that has no curve stands at step 0: MLflow shows such a one as a bar. A curve
        # ends, one step past the last, with the chosen weights' figure.
        has_curve = evaluation.split == "val" or config.test_freq or run.is_extended
        step = progress.steps + 1 if has_curve else 0
        evaluation.record(run, step=step, model_id=logged.model_id)
    cost = {
        "train/images_per_s": progress.steps * global_batch_size(config) / progress.train_s,
        "train/seconds": progress.train_s,
        "run/seconds": seconds,
    }
    run.log_metrics(cost, step=progress.steps if run.is_extended else 0)
    outcome = _choice(config, best.steps, progress.steps) + _register(
        config, manifest, evaluations, logged
    )
    rows = {f"this model, {e.split}": e.figures for e in evaluations}
    rows |= _record_baselines(run, manifest, evaluations[-1].figures)
    run.set_note(_note(manifest, rows, cost, outcome))
    click.echo(f"\n{_summary(rows)}\n\n{outcome}\nrun {run.id}\n{run.address}")


def _require_enough(config: Config, manifest: Manifest) -> None:
    """Refuse data that the config can't be run on, before any picture is decoded."""
    sizes = {split: len(manifest.indices(split)) for split in SPLITS}
    if sizes["train"] < (size := global_batch_size(config)):
        raise click.ClickException(
            f"train has {sizes['train']} images, fewer than the {size} of a step; lower "
            f"batch_size={config.batch_size}"
        )
    if not sizes["test"]:
        raise click.ClickException(f"{config.data} has no test images; give it some to report on")


def _open(config: Config, manifest: Manifest) -> Dataset:
    data = open_dataset(
        manifest,
        size_px=config.image_size_px,
        folder=Path(config.cache),
        skip_rejected=config.skip_rejected,
    )
    return data.carve_val(fraction=config.val_fraction, seed=config.seed)


def _record_splits(run: Run, manifest: Manifest) -> None:
    """Record the splits as data sets, and print how large they are."""
    for split in SPLITS:
        if len(samples := manifest.of(split)):
            run.log_dataset(samples, split)
            labels = samples.targets.sum(dtype=np.int64) / len(samples)
            click.echo(f"{split:5s}  {len(samples)} images, {labels:.2f} labels each")


def _record_data(run: Run, data: Dataset) -> None:
    """Record how often each label occurs in the splits, and the audit."""
    manifest = data.manifest
    table: dict[str, list[Any]] = {"label": list(manifest.labels)}
    counts = {}
    for split in SPLITS:
        if len(samples := manifest.of(split)):
            counts[split] = samples.targets.sum(axis=0, dtype=np.int64)
            table[split] = counts[split].tolist()
            table[f"{split} share"] = (counts[split] / len(samples)).round(4).tolist()
    rules = {k: getattr(manifest, k) for k in ("protocol", "unlabelled", "rejected", "digest")}
    run.set_tags({f"data.{key}": value for key, value in rules.items()})
    run.log_table(table, "data/label_distribution.json")
    run.log_figure(plots.label_distribution(manifest.labels, counts), "data/label_distribution.png")
    pictures = data if len(data) <= _MOST_HASHED else None
    run.log_text(audit.to_html(audit.make_audit(manifest, pictures)), "data/audit.html")


def _log_model(run: Run, config: Config, model: TaggerNet, data: Dataset) -> LoggedModel:
    """Export the network, check it on real pictures, and log it with its weights."""
    settings = {
        "labels": list(data.manifest.labels),
        "threshold": config.threshold,
        "image_size_px": config.image_size_px,
        "data_digest": data.manifest.digest,
        "config": asdict(config),
    }
    test = data.of("test")
    checked = test.gather(np.arange(min(_CHECKED, len(test))))
    with scratch_folder() as folder:
        bundle.write_bundle(folder / "bundle", model, settings, checked)
        bundle.write_weights(folder / "weights.safetensors", model)
        run.log_file(folder / "weights.safetensors", "weights")
        return bundle.log_bundle(folder / "bundle", checked[0], config.registered_model, run.id)


def _register(
    config: Config, manifest: Manifest, evaluations: list[Evaluation], logged: LoggedModel
) -> str:
    """Tag the new version and let it try for champion; gives the outcome in words."""
    if logged.version is None:
        return "It was not registered (registered_model=none)."
    name = config.registered_model
    tags: dict[str, str] = {"select_on": config.select_on}
    for evaluation in evaluations:
        tags |= {key: f"{value:.6f}" for key, value in evaluation.prefixed.items()}
        tags[f"{evaluation.split}_digest"] = evaluation.data.manifest.digest
    won = registry.describe_version(name, logged.version, tags)
    fate = f"It is now {name}@champion." if won else f"{name}@champion stays as it was."
    return f"It is registered as {name} version {logged.version}. {fate}"


def _record_baselines(run: Run, manifest: Manifest, figures: Figures) -> dict[str, Figures]:
    """Record what knows nothing of the pictures beside the model; baseline -> figures on test."""
    test = manifest.of("test")
    baselines = baseline_figures(manifest.of("train").targets, test.targets, test.known)
    for name, values in baselines.items():
        run.log_metrics({baseline_key(name, k): values[k] for k in HEADLINE}, step=0)
    rows = {"this model": figures, **{f"baseline {k}": v for k, v in baselines.items()}}
    columns: dict[str, list[Any]] = {k: [round(v[k], 4) for v in rows.values()] for k in HEADLINE}
    run.log_table({"on test": list(rows), **columns}, "test/baselines.json")
    bars = {name: {k: values[k] for k in HEADLINE} for name, values in rows.items()}
    run.log_figure(plots.metric_bars(bars, "on test"), "test/baselines.png")
    return {f"{name}, test": values for name, values in rows.items() if name != "this model"}


def _choice(config: Config, best_steps: int, steps: int) -> str:
    """Say how the weights were chosen."""
    if config.select_on == "last":
        return f"The weights are those after the last of {steps} steps. "
    honesty = " (so that its test figures flatter it)" if config.select_on == "test" else ""
    return (
        f"The weights are those after {best_steps} of {steps} steps, "
        f"chosen by mAP on {config.select_on}{honesty}. "
    )


def _note(
    manifest: Manifest, rows: Mapping[str, Figures], cost: Mapping[str, float], outcome: str
) -> str:
    """The run's description: what came out, on what, at what cost. The page shows its start."""
    test, bound = rows["this model, test"], rows["baseline top_k, test"]
    header = f"| | {' | '.join(HEADLINE)} |\n|---|{'---|' * len(HEADLINE)}"
    lines = (f"| {name} | {_cells(values, ' | ')} |" for name, values in rows.items())
    sizes = ", ".join(f"{len(manifest.indices(s))} {s}" for s in SPLITS)
    return "\n".join([
        f"**On test: mAP {test['map']:.3f}, micro-F1 {test['micro/f1']:.3f}** "
        f"(always the same labels: {bound['map']:.3f} and {bound['micro/f1']:.3f})", "",
        outcome, "", header, *lines, "",
        f"Data: {sizes} images, {len(manifest.labels)} labels, protocol {manifest.protocol}, "
        f"images without a label: {manifest.unlabelled}, unreadable pictures left out: "
        f"{manifest.rejected}, digest `{manifest.digest}`. "
        f"Trained at {cost['train/images_per_s']:.0f} images/s for {cost['train/seconds']:.0f} s. "
        "The last point of a val or test curve is the chosen weights' figure.",
    ])  # fmt: skip


def _summary(rows: Mapping[str, Figures]) -> str:
    """The rows as a table for the terminal."""
    header = f"{'':26s}" + "  ".join(f"{name:>10s}" for name in HEADLINE)
    return "\n".join([header, *(f"{name:26s}{_cells(v, '  ', 10)}" for name, v in rows.items())])


def _cells(values: Figures, separator: str, width: int = 0) -> str:
    return separator.join(f"{values[name]:{width}.3f}" for name in HEADLINE)


def evaluate_registered(model: str, data: str, split: str, cache: Path) -> None:
    """Measure a registered model again on a split of a data set, in a run of its own.

    model: models:/NAME@ALIAS or models:/NAME/VERSION. val is carved as the model's own run did.
    cache: the folder for decoded pictures.
    """
    version = registry.find_version(model)
    tagger = registry.load_tagger(version)
    manifest = load_manifest(data)
    columns = _matching_columns(tagger, manifest)
    whole = open_dataset(
        manifest,
        size_px=tagger.image_size_px,
        folder=cache,
        skip_rejected=tagger.config["skip_rejected"],
    )
    # As the model's own run carved it, so that the same images are val.
    fraction, seed = tagger.config["val_fraction"], tagger.config["seed"]
    part = whole.carve_val(fraction=fraction, seed=seed).of(split)
    samples = part.manifest
    if not len(samples):
        raise click.ClickException(f"{data} has no {split} images for {model}; give another split")
    with start_run("evaluate", f"{version.name}/{version.version} on {split}") as run:
        run.log_params({"model": model, "data": data, "split": split})
        run.set_tags({"model.version": f"{version.name}/{version.version}"})
        run.log_dataset(samples, split)
        scores = predict(tagger.score, part)[:, columns]
        evaluation = Evaluation(split, part, scores, tagger.threshold)
        evaluation.record(run, step=0, model_id=registry.model_id_of(version))
        summary = _summary({f"{version.name}/{version.version}, {split}": evaluation.figures})
        run.set_note(f"```\n{summary}\n```\nData: `{data}`, digest `{samples.digest}`.")
    click.echo(f"{summary}\nrun {run.id}\n{run.address}")


def _matching_columns(tagger: Tagger, manifest: Manifest) -> list[int]:
    """The model's columns in the order of the data's labels."""
    unknown = [label for label in manifest.labels if label not in tagger.labels]
    if unknown:
        raise click.ClickException(
            f"the model does not know {len(unknown)} of the data's labels, {unknown[0]!r} first; "
            f"it knows: {', '.join(tagger.labels)}"
        )
    return [tagger.labels.index(label) for label in manifest.labels]


def upload_run(run_id: str, checkpoints: Path) -> None:
    """Send what a run could not, and record its end if its training is complete."""
    about = runs.read_about(checkpoints / run_id)
    config = Config(**about["config"] | {"resume": run_id, "checkpoints": str(checkpoints)})
    path = checkpoints / run_id / LAST
    state = checkpoint.load(path) if path.exists() else None
    if state and state["progress"]["epoch"] >= config.epochs:
        train_and_register(config, name=run_id)
        return
    with runs.alone(checkpoints / run_id):
        mark = state["mark"] if state else 0
        send_spool(run_id, checkpoints, mark)
    click.echo(f"run {run_id} is recorded as far as it was trained; --resume {run_id} goes on")


def audit_data(data: str, out: Path, cache: Path | None) -> None:
    """Audit a data set into a folder. cache: the folder for decoded pictures, None for no look."""
    if cache is None:
        made = audit.make_audit(read_manifest(data))
    else:
        pictures = open_dataset(
            load_manifest(data), size_px=_AUDIT_PX, folder=cache, skip_rejected=True
        )
        made = audit.make_audit(pictures.manifest, pictures)
    try:
        audit.write_audit(made, out)
    except OSError as error:
        raise click.ClickException(f"cannot write into {out}: {error.strerror}") from error
    click.echo(f"{audit.to_text(made)}\n\n{out / 'audit.html'} shows it all.")
