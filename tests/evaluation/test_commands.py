"""`nuswide evaluate`, as far as it opens a model's data."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nuswide.data.dataset import load_manifest
from nuswide.data.manifest import carve_val
from nuswide.evaluation.commands import open_as_trained


@pytest.mark.parametrize(
    ("recorded", "fraction", "seed"),
    [
        ({"val_fraction": 0.25, "seed": 3, "split_seed": 5}, 0.25, 5),
        ({"val_fraction": 0.25, "seed": 3}, 0.25, 3),  # before split_seed, seed split val off
        ({}, 0.15, 0),
    ],
)
def test_val_is_that_of_training_also_of_a_model_older_than_a_field(
    recorded: dict[str, float], fraction: float, seed: int, tiny_data: Path, tmp_path: Path
) -> None:
    tagger = SimpleNamespace(config=recorded, image_size_px=32)
    whole = open_as_trained(tagger, str(tiny_data), tmp_path)
    expected = carve_val(load_manifest(str(tiny_data)), fraction=fraction, seed=seed)
    assert np.array_equal(whole.manifest.splits, expected.splits)
