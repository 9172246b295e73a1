"""The main job on real photographs, where a folder of them is named."""

from pathlib import Path

import numpy as np
import pytest
from conftest import REAL, Workspace, needs_real

from nuswide.data.dataset import load_manifest, open_dataset
from nuswide.tagger import Preprocessing, decode_image

pytestmark = [pytest.mark.slow, needs_real("corel5k", "coco128")]


@pytest.mark.parametrize(("name", "images"), [("corel5k", 1479), ("coco128", 126)])
def test_every_photograph_is_read(name: str, images: int, tmp_path: Path) -> None:
    manifest = load_manifest(str(REAL / name))
    data = open_dataset(manifest, Preprocessing(32), folder=tmp_path)
    assert data.images.shape == (images, 3, 32, 32)
    assert (data.manifest.targets.sum(axis=1) > 0).all()


def test_a_greyscale_photograph_comes_out_as_rgb() -> None:
    image = decode_image(REAL / "coco128/images/000000000086.jpg", 64)
    assert image.shape == (3, 64, 64)
    assert np.array_equal(image[0], image[1]) and image.std() > 10


@pytest.mark.parametrize(("name", "labels"), [("corel5k", "top:40"), ("coco128", "all")])
def test_photographs_pass_through_prepare_train_and_evaluate(
    name: str, labels: str, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    source = str(REAL / name)
    workspace.nuswide("prepare", source, "prepared", "--labels", labels, "--unlabelled", "drop")
    trained = workspace.nuswide(
        "train", "--data", "prepared", "--backbone", "resnet18", "--image_size_px", "32",
        "--epochs", "1",
    )  # fmt: skip
    evaluated = workspace.nuswide("evaluate", "--data", "prepared")
    first, again = (
        next(line.split()[-4:] for line in done.stdout.splitlines() if ", test " in line)
        for done in (trained, evaluated)
    )
    assert first == again


def test_a_few_epochs_on_photographs_beat_chance(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    done = workspace.nuswide(
        "train", "--data", str(REAL / "corel5k"), "--backbone", "resnet18",
        "--image_size_px", "48", "--epochs", "3", "--lr", "1e-3", "--registered_model", "none",
    )  # fmt: skip
    rows = {line.rsplit(maxsplit=4)[0]: line.split()[-4:] for line in done.stdout.splitlines()
            if ", test " in line}  # fmt: skip
    model_map, chance = (float(rows[k][0]) for k in ("this model, test", "baseline top_k, test"))
    assert model_map > 1.5 * chance
