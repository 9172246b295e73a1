"""Training from start to end: data, run, loop, evaluation, export, registration, report.

Owns the order of these steps, whose code is in other modules.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml

from nuswide.config import Config, known_fields
from nuswide.core import distributed
from nuswide.data.dataset import Dataset, load_manifest, open_dataset, read_manifest
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.data.splits import splits_csv
from nuswide.deployment import export
from nuswide.deployment.export import LoggedModel
from nuswide.evaluation import promote, summary
from nuswide.evaluation.evaluate import Decision, Evaluation, fit_decision, predict, torch_score
from nuswide.evaluation.model_card import make_card
from nuswide.models.networks import TaggerNet
from nuswide.models.preprocessing import (
    as_recorded,
    metadata_of,
    preprocessing_of,
    resolve_preprocessing,
)
from nuswide.reporting import audit
from nuswide.tagger import Preprocessing
from nuswide.tracking import reader, registry
from nuswide.tracking.relaunch import find_launcher, way_on
from nuswide.tracking.run import NullRun, Run, scratch_folder, send_outbox, start_run
from nuswide.tracking.store import open_store
from nuswide.training import checkpoint, run_folder
from nuswide.training.checkpoint import LAST, CheckpointWriter
from nuswide.training.features import with_features
from nuswide.training.loop import AfterEpoch, fit, global_batch_size, is_complete
from nuswide.training.starting_point import (
    create_network,
    digests,
    open_data,
    require_same_images,
    weights_here,
    with_numbered_weights,
)
from nuswide.training.step import Best, Progress, State, choose_device

_MOST_HASHED = 20_000  # images in which each run looks for duplicates; more take minutes
_AUDIT_PX = 64  # enough to tell images apart, and to see them
_CHECKED = 8  # images on which the exported model must agree with torch

Found = tuple[str, checkpoint.State | None]  # a run's ID, and the state to resume from


def train_and_register(
    config: Config,
    *,
    name: str,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    same_images: Mapping[str, str] | None = None,
    after_epoch: AfterEpoch | None = None,
) -> str | None:
    """Train in one MLflow run, evaluate the chosen weights, and register them.

    With several processes, all train, and the main one records. tags: further ones of the run.
    run_id: of a run created for this training, used unless one is resumed. same_images: tags of a
    run on the same images. after_epoch: ends the run as KILLED by raising EndedEarly. Returns the
    run's ID, None except in the main process.
    """
    start = time.perf_counter()
    registry.check_name(config.registered_model)
    with distributed.process_group(choose_device(config.device)):
        config, data, model = _open(with_numbered_weights(config))
        require_same_images(data, same_images or {})
        found = _choose(config, data, run_id)
        with _begin(config, data, name, found, is_managed=run_id is not None) as (run, folder):
            resumed = found[1] if found else None
            run.set_tags({**(tags or {}), **({} if resumed else digests(data, model))})
            run.log_params({"model.parameters": sum(p.numel() for p in model.parameters())})
            with CheckpointWriter(folder / LAST) as writer:
                best, state = fit(config, model, data, run, writer, resumed, after_epoch)
            model.load_state_dict(best.weights)
            decision, evaluations = _evaluate(config, model, data, state.device)
            if distributed.is_main():
                chosen = _choice(config, best, state, data.manifest.labels, decision)
                card = make_card(config, data.manifest, evaluations, choice=chosen)
                logged = _log_model(run, config, model, data, decision, card)
                seconds = time.perf_counter() - start
                _record_outcome(config, data, run, state, evaluations, logged, chosen, seconds)
            return run.id if distributed.is_main() else None


def _open(config: Config) -> tuple[Config, Dataset, TaggerNet]:
    """Open the data and build the network; return them after the config as it is recorded.

    Whatever can fail without images comes first, since decoding them takes long.
    """
    manifest = load_manifest(config.data, skip_rejected=config.skip_rejected)
    _require_enough(config, manifest)
    with weights_here(config) as local:
        recorded = run_folder.recorded_fields(config) if distributed.is_main() else None
        local = as_recorded(local, distributed.broadcast(recorded))
        local, source = resolve_preprocessing(local)
        config = replace(local, weights=config.weights)
        network = create_network(local, manifest)
        if distributed.is_main():
            open_store()
            export.require_exportable(network, config)
            click.echo(f"{_preprocessing_text(config)} (auto: from {source})")
        data = open_data(config, manifest)
        _require_enough(config, data.manifest)  # now that rejected images are left out, too
        network = create_network(local, data.manifest)  # val is split off now
        return config, with_features(local, network, data), network


def _choice(
    config: Config, best: Best, state: State, labels: Sequence[str], decision: Decision
) -> str:
    """Describe how weights and thresholds were chosen."""
    progress = state.progress
    weights = summary.choice(
        config, best.steps, best.map, steps=progress.steps, epochs=progress.epoch
    )
    return weights + summary.unreached(config, labels, decision.thresholds)


def _choose(config: Config, data: Dataset, run_id: str | None) -> Found | None:
    """Return the run to resume with its state, or the run created for this training."""
    found = run_folder.find(config, data) if distributed.is_main() else None
    chosen: Found | None = distributed.broadcast(found or ((run_id, None) if run_id else None))
    return chosen


@contextmanager
def _begin(
    config: Config, data: Dataset, name: str, found: Found | None, *, is_managed: bool
) -> Iterator[tuple[Run, Path]]:
    """Begin a run, or resume the one found; yields it with the folder of its checkpoints.

    On an error the last checkpoint stays there. An interrupt prints the command to resume, unless
    the run is managed by the caller.
    """
    if not distributed.is_main():
        yield NullRun(), Path(config.checkpoints)  # type: ignore[misc]
        return
    run_id, state = found or (None, None)
    checkpoints = Path(config.checkpoints)
    mark = state["mark"] if state else 0
    launcher = find_launcher()  # before the run is joined
    with start_run("train", name, run_id=run_id, outbox=checkpoints, mark=mark) as run:
        folder = checkpoints / run.id
        with run_folder.exclusive_lock(folder):
            run_folder.write_about(folder, config, data, is_recorded=False)
            _record_splits(run, data.manifest)
            if state:
                click.echo(f"resuming run {run_id} after {state['progress']['steps']} steps")
            else:
                run.log_params({**asdict(config), **_batch_sizes(config)})
                run.log_text(yaml.safe_dump(asdict(config), sort_keys=False), "config.yaml")
                _record_data(run, data)
            try:
                yield run, folder
            except KeyboardInterrupt:
                if not is_managed:
                    click.echo(f"\ninterrupted; {way_on(run.id, launcher)}")
                raise
    # Only now is all of it recorded: a run that is killed earlier is to be resumed.
    run_folder.write_about(folder, config, data, is_recorded=True)


def _batch_sizes(config: Config) -> dict[str, int]:
    return {
        "processes": distributed.world_size(),
        "global_batch_size": global_batch_size(config),
    }


def _evaluate(
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


def _record_outcome(
    config: Config,
    data: Dataset,
    run: Run,
    state: State,
    evaluations: list[Evaluation],
    logged: LoggedModel,
    chosen: str,
    seconds: float,
) -> None:
    """Record the metrics and the cost, try the model for champion, and print the result."""
    manifest, progress, test = data.manifest, state.progress, evaluations[-1]
    for evaluation in evaluations:
        # A metric without a curve is at step 0, so that MLflow shows a bar. A curve ends, one step
        # after the last, with the metric of the chosen weights.
        has_curve = evaluation.split == "val" or config.test_freq or run.is_extended
        step = progress.steps + 1 if has_curve else 0
        evaluation.record(run, step=step, model_id=logged.model_id)
        evaluation.record_pictures(run, data.of(evaluation.split), step=step)
    cost = {
        "train/images_per_s": progress.steps * global_batch_size(config) / progress.train_s,
        "train/seconds": progress.train_s,
        "run/seconds": seconds,
    }
    run.log_metrics(cost, step=progress.steps if run.is_extended else 0)
    fate = _register(config, manifest, evaluations, logged)
    came_out = chosen + fate
    rows = summary.result_rows(evaluations)
    rows |= summary.record_baselines(run, manifest.of("train"), test)
    run.set_note(summary.note(manifest, test, rows, cost, came_out))
    summary.record_report(
        run, run.name, data, test,
        held_out=evaluations[0] if evaluations[0].split == "val" else None,
        costs=cost, facts=_facts(config, manifest, run, came_out),
    )  # fmt: skip
    click.echo(
        f"\n{summary.results_text(rows)}\non test: {summary.headline(test)}\n\n{came_out}\n"
        f"run {run.id}\n{run.address}"
    )


def _preprocessing_text(config: Config) -> str:
    return (
        f"{config.image_size_px} px, fit {config.fit}, {config.interpolation}, mean {config.mean}, "
        f"std {config.std}"
    )


def _facts(config: Config, manifest: Manifest, run: Run, came_out: str) -> dict[str, str]:
    """Return the facts on model and data at the head of the report."""
    changed = {f.name: getattr(config, f.name) for f in fields(Config)}
    changed = {k: v for k, v in changed.items() if v != Config.__dataclass_fields__[k].default}
    return {
        "run": run.id,
        "outcome": came_out,
        "network": f"{config.backbone}, head {config.head}",
        "images": _preprocessing_text(config),
        "protocol": manifest.protocol,
        "data digest": manifest.digest,
        "images without a label": manifest.unlabelled,
        "fields that are not the default": ", ".join(f"{k}={v}" for k, v in changed.items()),
    }


def _require_enough(config: Config, manifest: Manifest) -> None:
    """Refuse data that the config cannot train on; val and test may be yet to be carved."""
    sizes = {split: len(manifest.indices(split)) for split in SPLITS}
    to_test = 0 if sizes["test"] else round(sizes["train"] * config.test_fraction)
    to_val = 0 if sizes["val"] else round((sizes["train"] - to_test) * config.val_fraction)
    if config.folds:  # the largest fold, in place of the data's own val
        to_val = -(-(sizes["train"] - to_test + sizes["val"]) // config.folds) - sizes["val"]
    to_carve = {split: n for split, n in (("val", to_val), ("test", to_test)) if n > 0}
    if (left := sizes["train"] - to_test - to_val) < (size := global_batch_size(config)):
        said = " and ".join(f"{n} are held out as {split}" for split, n in to_carve.items())
        carved = f" once {said}" if said else ""
        raise click.ClickException(
            f"train has {left} images{carved}, fewer than the {size} of a step; lower "
            f"batch_size={config.batch_size}"
        )
    if not sizes["test"] + to_test:
        raise click.ClickException(
            f"{config.data} has no test images; give test_fraction=0.2 to hold some out, or add "
            "some"
        )


def _record_splits(run: Run, manifest: Manifest) -> None:
    """Record the splits as data sets, and print their sizes."""
    for split in SPLITS:
        if len(samples := manifest.of(split)):
            run.log_dataset(samples, split)
            labels = samples.targets.sum(dtype=np.int64) / len(samples)
            nothing = "" if labels else ": mAP is undefined and chooses nothing"
            click.echo(f"{split:5s}  {len(samples)} images, {labels:.2f} labels each{nothing}")


def _record_data(run: Run, data: Dataset) -> None:
    """Record the label frequencies of the splits, and the audit."""
    manifest = data.manifest
    table: dict[str, list[Any]] = {"label": list(manifest.labels)}
    for split in SPLITS:
        if len(samples := manifest.of(split)):
            positives = samples.positives
            table[split] = positives.tolist()
            table[f"{split} share"] = (positives / len(samples)).round(4).tolist()
    rules = {k: getattr(manifest, k) for k in ("protocol", "unlabelled", "rejected")}
    run.set_tags({f"data.{key}": value for key, value in rules.items()})
    run.log_table(table, reader.LABEL_COUNTS)
    run.log_text(splits_csv(manifest), reader.SPLITS_FILE)
    made = audit.make_audit(manifest, data if len(data) <= _MOST_HASHED else None)
    run.log_picture(made.images["label_distribution"], "data/label_distribution.png")
    run.log_text(audit.to_html(made), "data/audit.html")


def _log_model(
    run: Run, config: Config, model: TaggerNet, data: Dataset, decision: Decision, card: str
) -> LoggedModel:
    """Export the network, check it on test images, and log it with its weights.

    Only the weights are logged of a network that cannot be exported and need not be registered.
    """
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


def upload_run(run_id: str, checkpoints: Path) -> None:
    """Send the rest of a run's outbox, and record its result if its training is complete."""
    about = run_folder.read_about(checkpoints / run_id)
    own = {"resume": run_id, "checkpoints": str(checkpoints)}
    config = Config(**known_fields(about["config"]) | own)
    path = checkpoints / run_id / LAST
    state = checkpoint.load(path) if path.exists() else None
    if state and is_complete(config, Progress(**state["progress"])):
        train_and_register(config, name=run_id)
        return
    with run_folder.exclusive_lock(checkpoints / run_id):
        mark = state["mark"] if state else 0
        send_outbox(run_id, checkpoints, mark)
    click.echo(f"run {run_id} is recorded as far as it was trained; --resume {run_id} continues it")


def audit_data(data: str, out: Path, cache: Path | None) -> None:
    """Audit a data set into a folder. cache: for decoded images; None to read no image."""
    if cache is None:
        made = audit.make_audit(read_manifest(data))
    else:
        pictures = open_dataset(
            load_manifest(data, skip_rejected=True),
            Preprocessing(_AUDIT_PX),
            folder=cache,
            skip_rejected=True,
        )
        made = audit.make_audit(pictures.manifest, pictures)
    try:
        audit.write_audit(made, out)
    except OSError as error:
        raise click.ClickException(f"cannot write into {out}: {error.strerror}") from error
    click.echo(f"{audit.to_text(made)}\n\n{out / 'audit.html'} has all of it.")
