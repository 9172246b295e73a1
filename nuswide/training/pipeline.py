"""Training from start to end: data, run, loop, evaluation, export, registration, report.

Owns the order of these steps, whose code is in other modules.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from nuswide.config import Config, known_fields
from nuswide.core import distributed
from nuswide.core.wording import counted
from nuswide.data.dataset import Dataset, load_manifest, open_dataset, read_manifest
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.data.splits import splits_csv
from nuswide.deployment import export
from nuswide.models.heads import MADE_FROM_TRAIN
from nuswide.models.networks import TaggerNet
from nuswide.models.preprocessing import as_recorded, resolve_preprocessing
from nuswide.reporting import audit
from nuswide.tagger import Preprocessing
from nuswide.tracking import reader, registry
from nuswide.tracking.relaunch import find_launcher, way_on
from nuswide.tracking.run import NullRun, Run, send_outbox, start_run
from nuswide.tracking.store import open_store
from nuswide.training import checkpoint, run_folder
from nuswide.training.checkpoint import LAST, CheckpointWriter
from nuswide.training.features import with_features
from nuswide.training.loop import AfterEpoch, fit, global_batch_size, is_complete
from nuswide.training.results import (
    Training,
    evaluate_chosen,
    preprocessing_text,
    record_results,
)
from nuswide.training.starting_point import (
    create_network,
    digests,
    open_data,
    require_same_images,
    weights_here,
    with_numbered_weights,
)
from nuswide.training.step import Progress, choose_device

_MOST_HASHED = 20_000  # images in which each run looks for duplicates; more take minutes
_AUDIT_PX = 64  # enough to tell images apart, and to see them

Found = tuple[str, checkpoint.State | None]  # a run's ID, and the state to resume from


def train_and_register(
    config: Config,
    *,
    name: str,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    same_images: Mapping[str, str] | None = None,
    after_epoch: AfterEpoch | None = None,
    is_trial: bool = False,
) -> str | None:
    """Train in one MLflow run, evaluate the chosen weights, and register them.

    With several processes, all train, and the main one records. tags: further ones of the run.
    run_id: of a run created for this training, used unless one is resumed. same_images: tags of a
    run on the same images. after_epoch: ends the run as KILLED by raising EndedEarly. is_trial:
    as of a sweep, leaves no picture, page or served model. Returns the run's ID, None except in
    the main process.
    """
    start = time.perf_counter()
    registry.check_name(config.registered_model)
    with distributed.process_group(choose_device(config.device)):
        config, data, model = _open(with_numbered_weights(config))
        require_same_images(data, same_images or {})
        found = _choose(config, data, run_id)
        resumed = found[1] if found else None
        data = with_features(config, model, data, resumed)
        is_managed = run_id is not None
        with _begin(config, data, name, found, is_managed=is_managed, is_trial=is_trial) as (
            run,
            folder,
        ):
            run.set_tags({**(tags or {}), **({} if resumed else digests(data, model))})
            run.log_params({"model.parameters": sum(p.numel() for p in model.parameters())})
            with CheckpointWriter(folder / LAST) as writer:
                best, state = fit(config, model, data, run, writer, resumed, after_epoch)
            model.load_state_dict(best.weights)
            decision, evaluations = evaluate_chosen(config, model, data, state.device)
            if distributed.is_main():
                done = Training(config, data, run, model, best, state.progress, start)
                record_results(done, decision, evaluations)
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
            click.echo(f"{preprocessing_text(config)} (auto: from {source})")
        data = open_data(config, manifest)
        _require_enough(config, data.manifest)  # now that rejected images are left out, too
        if config.head in MADE_FROM_TRAIN:
            network = create_network(local, data.manifest)
        return config, data, network


def _choose(config: Config, data: Dataset, run_id: str | None) -> Found | None:
    """Return the run to resume with its state, or the run created for this training."""
    found = run_folder.find(config, data) if distributed.is_main() else None
    chosen: Found | None = distributed.broadcast(found or ((run_id, None) if run_id else None))
    return chosen


@contextmanager
def _begin(
    config: Config,
    data: Dataset,
    name: str,
    found: Found | None,
    *,
    is_managed: bool,
    is_trial: bool,
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
    with start_run(
        "train", name, run_id=run_id, outbox=checkpoints, mark=mark, is_trial=is_trial
    ) as run:
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
            f"train has {counted(left, 'image')}{carved}, fewer than the {size} of a step; lower "
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
            click.echo(
                f"{split:5s}  {counted(len(samples), 'image')}, {labels:.2f} labels each{nothing}"
            )


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
    if run.is_trial:
        return
    made = audit.make_audit(manifest, data if len(data) <= _MOST_HASHED else None)
    run.log_picture(made.images["label_distribution"], "data/label_distribution.png")
    run.log_text(audit.to_html(made), "data/audit.html")


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
