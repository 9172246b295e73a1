"""What a training starts from: the data, the weights and the network, and their digests.

Owns opening and building them as the config says. Never trains.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.core.wording import counted
from nuswide.data.dataset import Dataset, load_manifest, open_dataset
from nuswide.data.label_stats import TrainLabels
from nuswide.data.manifest import Manifest
from nuswide.models.networks import TaggerNet, create_model
from nuswide.models.preprocessing import preprocessing_of, resolve_preprocessing
from nuswide.models.weights import read_metadata, weights_digest
from nuswide.tracking import reader, registry
from nuswide.tracking.run import scratch_folder


def starting_point(config: Config) -> dict[str, str]:
    """Return the tags of digests() that a training would have if it began now."""
    with weights_here(config) as local:
        local, _ = resolve_preprocessing(local)
        manifest = load_manifest(config.data, skip_rejected=config.skip_rejected)
        data = open_data(local, manifest)
        return digests(data, create_network(local, data.manifest))


def unused_fractions(config: Config, manifest: Manifest) -> Iterator[str]:
    """Yield a line for each fraction that is not the default and that the data leaves unused.

    manifest: before any split is held out.
    """
    for split, default in (("val", Config.val_fraction), ("test", Config.test_fraction)):
        fraction, n_own = getattr(config, f"{split}_fraction"), len(manifest.indices(split))
        if fraction in (0, default):
            continue
        if split == "val" and config.folds:
            yield f"val_fraction={fraction:g} is not used, as val is a fold of folds={config.folds}"
        elif n_own:
            own = counted(n_own, f"{split} image")
            yield f"{split}_fraction={fraction:g} is not used, as the data has {own} of its own"


def require_same_images(data: Dataset, tags: Mapping[str, str]) -> None:
    """Refuse images that have changed since an earlier run. tags: those of digests(), of that run.

    The tags of a run of an earlier version lack the digest, and none is compared.
    """
    before = tags.get("data.images_digest", data.images_digest)
    if before != data.images_digest:
        raise click.ClickException(
            "image files have changed since earlier folds were trained, and the mean of all would "
            f"mix both (digest {before}, now {data.images_digest}); restore the files, or delete "
            "the run of the folds in MLflow to train all of them again"
        )


def digests(data: Dataset, model: TaggerNet) -> dict[str, str]:
    """Return digests, as tags, of the annotations, the image files and the initial network.

    The last one covers the files that the network is made from: weights and word vectors.
    """
    return {
        "data.digest": data.manifest.digest,
        "data.images_digest": data.images_digest,
        "model.initial_digest": weights_digest(model),
    }


def open_data(config: Config, manifest: Manifest) -> Dataset:
    """Decode and open the images, and split val off train. config: resolved.

    Fractions that the data leaves unused are named in a line.
    """
    for line in unused_fractions(config, manifest):
        distributed.say(line)
    data = open_dataset(
        manifest,
        preprocessing_of(config),
        folder=Path(config.cache),
        skip_rejected=config.skip_rejected,
    )
    return data.hold_out(
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
        folds=config.folds,
        fold=config.fold,
    )


def create_network(config: Config, manifest: Manifest) -> TaggerNet:
    """Build the network for the labels of a data set."""
    return create_model(config, n_labels=len(manifest.labels), train=TrainLabels.of(manifest))


def with_numbered_weights(config: Config) -> Config:
    """Return the config with a version's number in place of its alias, which may move."""
    if not config.weights.startswith(registry.ADDRESS):
        return config
    is_main = distributed.is_main()
    address = registry.address_of(registry.find_version(config.weights)) if is_main else None
    return replace(config, weights=distributed.broadcast(address))


@contextmanager
def weights_here(config: Config) -> Iterator[Config]:
    """Yield the config with a registered version's weights as a temporary file."""
    if not config.weights.startswith(registry.ADDRESS):
        yield config
        return
    with scratch_folder() as folder:
        weights = reader.fetch_weights(registry.find_version(config.weights), folder)
        yield replace(_with_recorded_size(config, weights), weights=str(weights))


def _with_recorded_size(config: Config, weights: Path) -> Config:
    """Take image_size_px=0 from the bundle of a version whose weights do not state it.

    These are the weights of version 0.2.0 and earlier.
    """
    if config.image_size_px or read_metadata(weights).get("preprocessing"):
        return config
    bundle = registry.fetch_bundle(registry.find_version(config.weights))
    settings = json.loads((bundle / "tagger.json").read_text("utf-8"))
    try:
        return replace(config, image_size_px=settings["image_size_px"])
    except ValueError as error:
        raise click.UsageError(f"with the image size of {config.weights}: {error}") from error
