import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from nuswide.config import Config
from nuswide.data.auto_augment import OPERATIONS, apply_operations, draw_operations
from nuswide.data.transforms import IMAGENET, augment, draw

SIDE = 64
STILL = {"hflip": 0.0, "rotate_deg": 0.0, "translate": 0.0, "scale_min": 1.0, "scale_max": 1.0}
NAMES = list(OPERATIONS)
KINDS = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


def config(kind: str, **changes: Any) -> Config:
    return Config(image_size_px=SIDE, auto_augment=kind, **STILL | changes)


def pictures(n: int, seed: int = 0) -> Tensor:
    """Smooth random pictures with their own range of levels, which noise would not have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 9, 9, generator=generator)
    low, high = torch.rand(2, n, 3, 1, 1, generator=generator).sort(dim=0).values
    smooth = torch.nn.functional.interpolate(coarse, SIDE, mode="bicubic").clamp(0, 1)
    return (255 * (low + (high - low) * smooth)).to(torch.uint8)


def warp(**changes: Any) -> Callable[[Tensor], Tensor]:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    return lambda image: tvf.affine(image, **still | changes, fill=[124.0, 116.0, 104.0])


def theirs(name: str, strength: float) -> Callable[[Tensor], Tensor]:
    """What torchvision does with one image for an operation of this strength."""
    slope = math.degrees(math.atan(strength))
    corner = {"center": [0, 0]}
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "identity": lambda image: image,
        "shear_x": warp(shear=[slope, 0.0], **corner),
        "shear_y": warp(shear=[0.0, slope], **corner),
        "translate_x": warp(translate=[int(strength * SIDE), 0]),
        "translate_y": warp(translate=[0, int(strength * SIDE)]),
        "rotate": lambda image: tvf.rotate(image, strength, fill=[124.0, 116.0, 104.0]),
        "brightness": lambda image: tvf.adjust_brightness(image, strength),
        "color": lambda image: tvf.adjust_saturation(image, strength),
        "contrast": lambda image: tvf.adjust_contrast(image, strength),
        "sharpness": lambda image: tvf.adjust_sharpness(image, strength),
        "posterize": lambda image: tvf.posterize(image, round(strength)),
        "solarize": lambda image: tvf.solarize(image, strength),
        "autocontrast": tvf.autocontrast,
        "equalize": tvf.equalize,
    }
    return kinds[name]


def drawn(kind: str, n: int, epoch: int = 0, **changes: Any) -> Tensor:
    """Operations and strengths, as training draws them; (n, number, 2)."""
    rows = draw(config(kind, **changes), n_images=n, epoch=epoch)[:, 19:]
    return torch.from_numpy(rows).unflatten(1, (-1, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_a_batch_gets_torchvisions_pixels(kind: str, name: str) -> None:
    # Levels are cut off to whole ones and places to the nearest pixel: where that falls within
    # rounding of an edge, as often for colours that are nearly gray, the two may take either side.
    images, rows = pictures(300), drawn(kind, 300)[:, :1]
    ours = apply_operations(images, rows.flatten(1))
    of_name = (rows[:, 0, 0] == NAMES.index(name)).nonzero().flatten()
    assert len(of_name) > 5
    differing = []
    for i in of_name.tolist():
        expected = theirs(name, rows[i, 0, 1].item())(images[i])
        difference = (ours[i].int() - expected.int()).abs()
        is_moved = name.startswith(("shear", "rotate"))
        assert is_moved or difference.max() <= 1
        differing.append(difference.bool().float().mean().item())
    assert max(differing) <= 0.02 and np.mean(differing) <= (0.002 if name == "color" else 1e-4)
    changed = (ours[of_name] != images[of_name]).float().mean().item()
    assert changed == 0 if name == "identity" else changed > 0.01


EXACT = (
    "identity",
    "translate_x",
    "translate_y",
    "brightness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)


@pytest.mark.parametrize("name", EXACT)
def test_where_nothing_is_rounded_the_pixels_are_exactly_torchvisions(name: str) -> None:
    images = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8)
    images[0], images[1, 0] = 255, 7  # pictures and channels of one level
    operation = OPERATIONS[name]
    for share in (0.0, 0.3, 1.0):
        strength = operation.neutral + share * operation.span
        row = torch.tensor([[NAMES.index(name), strength]]).expand(8, -1)
        expected = torch.stack([theirs(name, row[0, 1].item())(image) for image in images])
        assert torch.equal(apply_operations(images, row), expected)


SPACES = {"ShearX": "shear_x", "ShearY": "shear_y", "AutoContrast": "autocontrast"}
SPACES |= {"TranslateX": "translate_x", "TranslateY": "translate_y"}


@pytest.mark.parametrize("kind", KINDS)
def test_operations_and_strengths_are_torchvisions(kind: str) -> None:
    space = KINDS[kind]._AUGMENTATION_SPACE
    named = {SPACES.get(name, name.lower()): value for name, value in space.items()}
    assert named.keys() == OPERATIONS.keys()
    side = 224
    for name, (strengths_of, is_signed) in named.items():
        steps = strengths_of(31, side, side)
        if steps is None:
            continue
        rows = drawn(kind, 20_000, randaugment_magnitude=20, randaugment_number=1)[:, 0]
        found = rows[rows[:, 0] == NAMES.index(name), 1]
        expected = steps.float() if kind == "trivialaugment" else steps[20:21].float()
        if is_signed:
            expected = torch.cat([expected, -expected])
        if name.startswith("translate"):
            found = found * side
        elif name in ("brightness", "color", "contrast", "sharpness"):
            found = found - 1
        elif name == "solarize":
            found = found / 255
        elif name == "posterize":
            found = found.round()
        wanted = sorted(set(np.round(expected.numpy(), 3) + 0.0))
        np.testing.assert_allclose(sorted(set(np.round(found.numpy(), 3) + 0.0)), wanted, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_and_sign_comes_about_as_often(kind: str) -> None:
    rows = drawn(kind, 7000)
    for numbers in rows[..., 0].unbind(1):
        counts = torch.bincount(numbers.long(), minlength=len(OPERATIONS))
        assert counts.min() > 400 and counts.max() < 600
    turns = rows[rows[..., 0] == NAMES.index("rotate"), 1]
    assert abs((turns > 0).float().mean().item() - 0.5) < 0.08
    levels = len(set(turns.abs().tolist()))
    assert levels == (31 if kind == "trivialaugment" else 1)


def test_randaugment_takes_as_many_operations_as_asked_one_after_the_other() -> None:
    images, rows = pictures(40), drawn("randaugment", 40, randaugment_number=3)
    assert rows.shape == (40, 3, 2)
    by_turns = images
    for i in range(3):
        by_turns = apply_operations(by_turns, rows[:, i])
    assert torch.equal(apply_operations(images, rows.flatten(1)), by_turns)
    assert (rows[:, 0, 0] != rows[:, 1, 0]).float().mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_64_copies_of_an_image_do_not_come_out_equal(kind: str) -> None:
    rows = drawn(kind, 64).flatten(1)
    out = apply_operations(pictures(1).expand(64, -1, -1, -1), rows)
    assert out.dtype == torch.uint8
    # As many as there are different draws, less those that change nothing.
    assert len({image.numpy().tobytes() for image in out}) > 30


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_comes_out_the_same_whatever_is_beside_it(kind: str) -> None:
    images, rows = pictures(64), drawn(kind, 64).flatten(1)
    together = apply_operations(images, rows)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(apply_operations(images[order], rows[order]), together[order])
    for i in range(64):
        alone = apply_operations(images[i : i + 1], rows[i : i + 1])
        assert torch.equal(alone[0], together[i])
    assert torch.equal(images, pictures(64))


def test_draws_depend_on_seed_and_epoch_and_not_on_how_many_there_are() -> None:
    for kind in KINDS:
        few, many = drawn(kind, 7), drawn(kind, 500)
        assert torch.equal(few, many[:7])
        others = [drawn(kind, 7, epoch=1), drawn(kind, 7, seed=1)]
        assert not any(torch.equal(few, other) for other in others)


def test_without_auto_augment_nothing_is_drawn() -> None:
    assert draw(config("none"), n_images=5, epoch=0).shape == (5, 19)
    assert draw(config("randaugment"), n_images=0, epoch=0).shape == (0, 23)
    rng = np.random.default_rng(0)
    assert draw_operations(config("none"), rng, 5).shape == (5, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_augment_puts_images_through_their_operations_first(kind: str) -> None:
    cfg, images = config(kind), pictures(16)
    draws = torch.from_numpy(draw(cfg, n_images=16, epoch=0))
    expected = IMAGENET(apply_operations(images, draws[:, 19:]))
    torch.testing.assert_close(augment(images, draws, cfg), expected)
    assert not torch.equal(expected, IMAGENET(images))
