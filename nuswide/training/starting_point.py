"""What a training starts from: the data, the weights and the network, and their digests.

Owns opening and building them as the config says. Never trains.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.data.dataset import Dataset, load_manifest, open_dataset
from nuswide.data.label_stats import TrainLabels
from nuswide.data.manifest import Manifest
from nuswide.models.networks import TaggerNet, create_model
from nuswide.models.preprocessing import preprocessing_of, resolve_preprocessing
from nuswide.models.weights import weights_digest
from nuswide.tracking import reader, registry
from nuswide.tracking.run import scratch_folder


def starting_point(config: Config) -> dict[str, str]:
    """Return the tags of digests() that a training would have if it began now."""
    with weights_here(config) as local:
        local, _ = resolve_preprocessing(local)
        manifest = load_manifest(config.data, skip_rejected=config.skip_rejected)
        data = open_data(local, manifest)
        return digests(data, create_network(local, data.manifest))


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
    """Decode and open the images, and split val off train. config: resolved."""
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
        yield replace(config, weights=str(weights))
