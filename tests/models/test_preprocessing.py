"""Networks get images as their pretrained weights did: constants, interpolation, fit and size."""

import io
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from nuswide.config import IMAGENET_MEAN, IMAGENET_STD, Config, load_config, with_defaults
from nuswide.data.transforms import augment, draw
from nuswide.models.backbones import BACKBONES
from nuswide.models.networks import create_model
from nuswide.models.preprocessing import (
    metadata_of,
    normalization_of,
    of_backbone,
    preprocessing_of,
    resolve_preprocessing,
)
from nuswide.models.weights import METADATA
from nuswide.tagger import Preprocessing, decode_image

LITE = "timm/tf_efficientnet_lite0"  # trained with mean and deviation of 0.5, bicubic


def resolve(**fields: Any) -> Config:
    return resolve_preprocessing(Config(**fields))[0]


def save_ours(path: Path, preprocessing: dict[str, Any]) -> None:
    own = json.dumps({"labels": [], "preprocessing": preprocessing})
    save_file({"x": torch.zeros(1)}, path, metadata={METADATA: own})


@pytest.mark.parametrize("backbone", BACKBONES)
def test_torchvisions_backbones_were_trained_with_imagenets_constants(backbone: str) -> None:
    config = resolve(backbone=backbone, image_size_px=0)
    assert (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert config.interpolation == ("bicubic" if backbone == "swin_t" else "bilinear")
    assert config.image_size_px == (384 if backbone == "efficientnet_v2_s" else 224)


def test_timms_backbones_have_constants_of_their_own() -> None:
    config, source = resolve_preprocessing(Config(backbone=LITE, image_size_px=0, fit="pad"))
    assert source == LITE
    assert preprocessing_of(config) == Preprocessing(224, "pad", "bicubic", (128, 128, 128))
    assert normalization_of(config).mean == normalization_of(config).std == (0.5, 0.5, 0.5)
    clip = resolve(backbone="timm/vit_base_patch32_clip_224")
    assert clip.mean.startswith("0.4814") and clip.image_size_px == 256


def test_an_option_takes_precedence_over_the_file_of_weights_and_that_over_the_backbone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.safetensors"
    trained = resolve(backbone="resnet18", mean="0.1,0.2,0.3", interpolation="bicubic")
    save_ours(path, metadata_of(trained))
    config, source = resolve_preprocessing(Config(backbone=LITE, weights=str(path)))
    assert source == "the initial weights"
    assert (config.mean, config.std, config.interpolation) == (
        "0.1,0.2,0.3", IMAGENET_STD, "bicubic"
    )  # fmt: skip
    config = resolve(backbone=LITE, weights=str(path), mean="0.9,0.9,0.9")
    assert (config.mean, config.std) == ("0.9,0.9,0.9", IMAGENET_STD)


def test_the_size_of_pretrained_weights_of_ours_is_what_they_were_trained_at(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.safetensors"
    trained = resolve(backbone="resnet18", image_size_px=96)
    save_ours(path, metadata_of(trained))
    assert resolve(backbone="resnet18", weights=str(path), image_size_px=0).image_size_px == 96
    assert resolve(backbone="resnet18", weights=str(path)).image_size_px == Config.image_size_px


def test_weights_of_version_0_2_0_had_imagenets_constants_and_bilinear(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"labels": "[]"})
    config = resolve(backbone=LITE, weights=str(path), image_size_px=0)
    assert (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (config.interpolation, config.image_size_px) == ("bilinear", 224)


@pytest.mark.parametrize("stated", [None, "resize to 224", "5", '{"mean": [0.1, 0.2, 0.3]}'])
def test_what_another_programs_file_of_weights_states_is_not_ours(
    tmp_path: Path, stated: str | None
) -> None:
    path = tmp_path / "w.safetensors"
    metadata = {"preprocessing": stated} if stated else None
    save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    config, source = resolve_preprocessing(Config(backbone=LITE, weights=str(path)))
    assert (config.mean, source) == ("0.5,0.5,0.5", LITE)


def test_a_checkpoint_of_ours_has_the_preprocessing_of_its_run(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    state = {"progress": {}, "best": None, "ema": None, "model": {}}
    state |= {"digest": "d", "world_size": 1}
    torch.save({**state, "config": {"mean": "0.3,0.3,0.3", "image_size_px": 96}}, path)
    config = resolve(backbone=LITE, weights=str(path), image_size_px=0)
    assert (config.mean, config.std, config.image_size_px) == ("0.3,0.3,0.3", IMAGENET_STD, 96)
    torch.save({"model": {"x": torch.zeros(1)}}, path)
    assert resolve(backbone=LITE, weights=str(path)).mean == "0.5,0.5,0.5"


def test_images_may_grow_to_the_pretrained_size_but_not_beyond() -> None:
    assert resolve(backbone=LITE, image_size_px=0, start_size_px=192).image_size_px == 224
    with pytest.raises(click.UsageError, match=f"of {LITE}: start_size_px=256 .* give e.g. 96"):
        resolve(backbone=LITE, image_size_px=0, start_size_px=256)


def test_a_resolved_config_stays_as_it_is() -> None:
    config = resolve(backbone=LITE)
    assert resolve_preprocessing(config) == (config, "the experiment")


def test_records_without_these_fields_were_imagenets_and_bilinear() -> None:
    recorded = Config(**with_defaults({"backbone": LITE}))
    assert (recorded.mean, recorded.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (recorded.interpolation, recorded.fit) == ("bilinear", "squash")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", "0.5"),
        ("mean", "a,b,c"),
        ("mean", "0,0,1.1"),
        ("std", "0,1,1"),
        ("std", "1e-40,1,1"),
        ("std", "nan,1,1"),
    ],
)
def test_constants_that_are_none_are_refused(name: str, value: str) -> None:
    with pytest.raises(click.UsageError, match=f"{name}='{value}' is not auto or three numbers"):
        load_config(None, {name: value})


@pytest.mark.parametrize("backbone", [LITE, "resnet18"])
def test_training_and_scoring_normalize_alike(backbone: str) -> None:
    still = {"hflip": 0.0, "rotate_deg": 0.0, "translate": 0.0, "scale_min": 1.0, "scale_max": 1.0}
    config = resolve(backbone=backbone, image_size_px=32, **still)
    model = create_model(config, n_labels=2)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    theirs = of_backbone(backbone)
    mean, std = (torch.tensor([float(x) for x in theirs[k].split(",")]) for k in ("mean", "std"))
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(model.normalize(images), expected)
    draws = torch.from_numpy(draw(config, n_images=2, epoch=0))
    trained = augment(images, draws, config, model.normalize)
    torch.testing.assert_close(trained, expected)


def test_features_equal_those_of_timms_own_pipeline() -> None:
    config = resolve(backbone=LITE, image_size_px=0, fit="crop")
    model = create_model(config, n_labels=2).eval()
    pipeline = timm.data.create_transform(
        **timm.data.resolve_data_config({"crop_pct": 1.0}, model=model.backbone.network)
    )
    rng = np.random.default_rng(0)
    for size in ((240, 300), (301, 227), (224, 224), (97, 640)):
        pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        photograph = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        photograph.save(file, "PNG")
        ours = torch.from_numpy(decode_image(file, *preprocessing_of(config)))[None]
        with torch.no_grad():
            features = model.backbone(model.normalize(ours))
            theirs = model.backbone.network.forward_features(pipeline(photograph)[None])
        torch.testing.assert_close(features, theirs, rtol=0, atol=1e-4)
