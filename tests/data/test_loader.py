from pathlib import Path

import numpy as np
import pytest
import torch

from nuswide.data.dataset import Dataset
from nuswide.data.loader import BlockLoader, ResidentLoader, create_loader
from nuswide.data.manifest import Manifest

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.fixture
def data() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    names = tuple(f"{i}.jpg" for i in range(30))
    targets, splits = np.ones((30, 2), np.uint8), np.array(["train"] * 20 + ["test"] * 10)
    return Dataset(Manifest(Path(), names, ("a", "b"), targets, splits), images, np.arange(30) + 5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["resident", "blocks", "auto"])
def test_every_loader_yields_the_images_of_the_batches_in_their_order(
    data: Dataset, kind: str, device: str
) -> None:
    rng = np.random.default_rng(1)
    batches = [rng.permutation(20)[:6] for _ in range(9)]
    loader = create_loader(data, np.arange(20), torch.device(device), kind)
    given = list(loader.batches(batches))
    assert len(given) == 9
    for batch, images in zip(batches, given, strict=True):
        assert images.device.type == device
        assert (images.cpu().numpy() == data.images[batch + 5]).all()


def test_a_cpu_reads_from_the_cache_unless_told_to_read_ahead(data: Dataset) -> None:
    device = torch.device("cpu")
    assert isinstance(create_loader(data, np.arange(20), device, "auto"), ResidentLoader)
    assert isinstance(create_loader(data, np.arange(20), device, "blocks"), BlockLoader)


def test_reading_ahead_stops_when_training_does(data: Dataset) -> None:
    batches = BlockLoader(data, torch.device("cpu")).batches([np.arange(3)] * 100)
    next(batches)
    batches.close()
