import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf
from torchvision.transforms import transforms as tvt

from nuswide.config import Config
from nuswide.data import auto_augment, transforms
from nuswide.data.transforms import (
    IMAGENET,
    affine,
    augment,
    draw,
    jitter,
    mix,
    resize,
    side_px,
)

SIDE = 64
STILL = {"hflip": 0.0, "rotate_deg": 0.0, "translate": 0.0, "scale_min": 1.0, "scale_max": 1.0}


def config(**changes: Any) -> Config:
    return Config(image_size_px=SIDE, **changes)


def thetas(cfg: Config, *, n_images: int, epoch: int) -> np.ndarray:
    """The matrices that are drawn for affine."""
    return draw(cfg, n_images=n_images, epoch=epoch)[:, :6].reshape(-1, 2, 3)


def noise(n: int = 1, seed: int = 0) -> torch.Tensor:
    """Images (n, 3, SIDE, SIDE) without two pixels alike, none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, SIDE, SIDE, generator=generator) + 0.5


def warped(cfg: Config, images: torch.Tensor, epoch: int = 0) -> torch.Tensor:
    return affine(images, torch.from_numpy(thetas(cfg, n_images=len(images), epoch=epoch)))


def parameters_of(theta: np.ndarray) -> dict[str, Any]:
    """Read flip, angle, shift and zoom back from a drawn matrix."""
    matrix, offset = theta[:, :2].astype(float), theta[:, 2].astype(float)
    flipped = np.linalg.det(matrix) < 0
    rotation = np.diag([-1.0, 1.0]) @ matrix if flipped else matrix
    shift = -np.linalg.solve(matrix, offset) * SIDE / 2
    return {
        "flipped": flipped,
        "angle": float(np.rad2deg(np.arctan2(rotation[0, 1], rotation[0, 0]))),
        "scale": float(1 / np.hypot(*rotation[0])),
        "translate": [round(float(x)) for x in shift],
        "distance_to_whole_px": float(np.abs(shift - shift.round()).max()),
    }


def test_normalize_equals_torchvisions() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    pixels = tvf.convert_image_dtype(images)
    expected = tvf.normalize(pixels, list(IMAGENET.mean), list(IMAGENET.std))
    assert IMAGENET(images).dtype == torch.float32
    torch.testing.assert_close(IMAGENET(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("epoch", range(3))
def test_affine_equals_torchvisions_after_its_flip(epoch: int) -> None:
    # Where a source coordinate falls within rounding of a pixel's edge, the two may take either
    # neighbour: at most 1 pixel in 1,000 differs.
    images = noise(n=20, seed=epoch)
    draws = thetas(config(), n_images=len(images), epoch=epoch)
    ours = affine(images, torch.from_numpy(draws))
    theirs = torch.empty_like(images)
    for row, theta in enumerate(draws):
        p = parameters_of(theta)
        image = tvf.hflip(images[row]) if p["flipped"] else images[row]
        theirs[row] = tvf.affine(
            image, p["angle"], p["translate"], p["scale"], [0.0, 0.0],
            interpolation=InterpolationMode.NEAREST, fill=[0.0],
        )  # fmt: skip
    differing = (ours != theirs).any(dim=1).float().mean().item()
    assert differing <= 0.001
    assert (ours == 0).any() and (ours != 0).any()


def test_drawn_parameters_fill_the_ranges_of_the_config() -> None:
    cfg = config(rotate_deg=20.0, translate=0.25, scale_min=0.5, scale_max=1.5, hflip=0.3)
    drawn = [parameters_of(theta) for theta in thetas(cfg, n_images=2000, epoch=1)]
    for values, low, high in (
        ([p["angle"] for p in drawn], -20, 20),
        ([p["scale"] for p in drawn], 0.5, 1.5),
        ([p["translate"][0] for p in drawn], -16, 16),
        ([p["translate"][1] for p in drawn], -16, 16),
    ):
        span = high - low
        assert low - 1e-3 <= min(values) < low + 0.05 * span
        assert high - 0.05 * span < max(values) <= high + 1e-3
        assert abs(np.mean(values) - (low + high) / 2) < 0.04 * span
    assert abs(np.mean([p["flipped"] for p in drawn]) - 0.3) < 0.04
    assert max(p["distance_to_whole_px"] for p in drawn) < 1e-3


def test_drawn_ranges_are_those_of_torchvisions_random_affine() -> None:
    torch.manual_seed(0)
    cfg = config()
    ranges = ([-20.0, 20.0], [0.2, 0.2], [0.5, 1.5], None, [SIDE, SIDE])
    theirs = [tvt.RandomAffine.get_params(*ranges) for _ in range(2000)]
    ours = [parameters_of(theta) for theta in thetas(cfg, n_images=2000, epoch=0)]
    for name, place in (("angle", 0), ("scale", 2)):
        mine, other = [p[name] for p in ours], [t[place] for t in theirs]
        assert np.quantile(mine, [0.1, 0.5, 0.9]) == pytest.approx(
            np.quantile(other, [0.1, 0.5, 0.9]), abs=0.06 * (max(other) - min(other))
        )
    shifts = {x for p in ours for x in p["translate"]}
    assert shifts == {x for t in theirs for x in t[1]}


def test_64_copies_of_an_image_do_not_come_out_equal() -> None:
    out = warped(config(), noise().expand(64, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in out}) == 64


def test_the_same_seed_and_epoch_draw_the_same() -> None:
    one, two = (thetas(config(seed=3), n_images=9, epoch=2) for _ in range(2))
    assert (one == two).all()


def test_another_seed_or_epoch_draws_anew() -> None:
    draws = [
        thetas(config(seed=seed), n_images=5, epoch=epoch).tobytes()
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(draws)) == 9


def test_what_an_image_sees_does_not_depend_on_how_many_there_are() -> None:
    few, many = (thetas(config(), n_images=n, epoch=1) for n in (7, 1000))
    assert (few == many[:7]).all()


def test_draws_do_not_touch_the_global_generators() -> None:
    torch.manual_seed(0)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())
    thetas(config(), n_images=5, epoch=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def test_a_config_without_augmentation_is_the_exact_identity() -> None:
    images = noise(n=8)
    assert torch.equal(warped(config(**STILL), images), images)


def test_a_config_that_only_flips_is_the_exact_mirror_image() -> None:
    images = noise(n=8)
    assert torch.equal(warped(config(**STILL | {"hflip": 1.0}), images), images.flip(-1))


@pytest.mark.parametrize("side", [32, 33, 64, 224, 256, 321])
def test_whole_pixel_shifts_are_exact_at_every_size(side: int) -> None:
    cfg = Config(image_size_px=side, **STILL | {"translate": 0.2})
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(4, 3, side, side, generator=generator) + 0.5
    draws = thetas(cfg, n_images=4, epoch=0)
    for image, theta, out in zip(
        images, draws, affine(images, torch.from_numpy(draws)), strict=True
    ):
        right, down = (-theta[:, 2].astype(float) * side / 2).round().astype(int)
        expected = torch.roll(image, (int(down), int(right)), dims=(1, 2))
        kept = out != 0
        assert torch.equal(out[kept], expected[kept])
        assert kept[0].sum() == (side - abs(right)) * (side - abs(down))


def test_draws_are_float32_matrices_a_row_an_image() -> None:
    draws = thetas(config(), n_images=3, epoch=0)
    assert draws.shape == (3, 2, 3) and draws.dtype == np.float32
    assert thetas(config(), n_images=0, epoch=0).shape == (0, 2, 3)


COLORS = {"brightness": 0.4, "contrast": 0.5, "saturation": 0.6, "hue": 0.1}


def test_jitter_equals_torchvisions_for_the_same_factors() -> None:
    images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    factors = torch.from_numpy(draw(config(**COLORS), n_images=12, epoch=0)[:, 6:10])
    for image, out, (b, c, s, h) in zip(
        images, jitter(images, factors), factors.tolist(), strict=True
    ):
        expected = tvf.adjust_contrast(tvf.adjust_brightness(image, b), c)
        expected = tvf.adjust_hue(tvf.adjust_saturation(expected, s), h)
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)


def test_color_factors_fill_the_ranges_of_torchvisions_color_jitter() -> None:
    drawn = draw(config(**COLORS), n_images=4000, epoch=0)[:, 6:10]
    for values, low, high in zip(drawn.T, (0.6, 0.5, 0.4, -0.1), (1.4, 1.5, 1.6, 0.1), strict=True):
        assert low <= values.min() < low + 0.01 * (high - low) + 1e-3
        assert high - 0.01 * (high - low) - 1e-3 < values.max() <= high + 1e-6


def test_without_jitter_colors_stay() -> None:
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
    still = config(**STILL)
    draws = torch.from_numpy(draw(still, n_images=4, epoch=0))
    assert torch.equal(augment(images, draws, still), IMAGENET(images))


def test_erasing_hits_the_asked_share_of_images_and_only_a_rectangle() -> None:
    cfg = config(**STILL, erase=0.5)
    n = 400
    images = torch.full((n, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    out = augment(images, torch.from_numpy(draw(cfg, n_images=n, epoch=0)), cfg)
    gone = (out == 0).all(dim=1)
    hit = gone.flatten(1).any(dim=1)
    assert abs(hit.float().mean().item() - 0.5) < 0.08
    for image in gone[hit]:
        rows, columns = image.any(dim=1).nonzero(), image.any(dim=0).nonzero()
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all() and 0.01 < box.numel() / SIDE**2 < 0.36


def test_mixup_blends_neighbours_and_their_targets_by_one_share() -> None:
    cfg = config(mixup=0.4)
    images, targets = noise(5), torch.eye(5)
    draws = torch.from_numpy(draw(cfg, n_images=5, epoch=0))
    mixed, soft, _ = mix(images, targets, None, draws, cfg)
    share = draws[:, 14]
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 4)):
        torch.testing.assert_close(mixed[i], share[i] * images[i] + (1 - share[i]) * images[j])
        torch.testing.assert_close(soft[i], share[i] * targets[i] + (1 - share[i]) * targets[j])


def test_cutmix_pastes_a_rectangle_whose_area_is_the_targets_share() -> None:
    cfg = config(cutmix=1.0)
    images, targets = noise(6), torch.eye(6)
    draws = torch.from_numpy(draw(cfg, n_images=6, epoch=0))
    mixed, soft, _ = mix(images, targets, None, draws, cfg)
    for i in range(6):
        own = (mixed[i] == images[i]).all(dim=0)
        assert torch.equal(mixed[i][:, ~own], images[i ^ 1][:, ~own])
        assert soft[i, i].item() == pytest.approx(own.float().mean().item(), abs=1e-6)
        assert soft[i].sum().item() == pytest.approx(1)


def test_with_both_a_coin_decides_and_a_mixed_entry_is_known_where_both_were() -> None:
    cfg = config(mixup=0.4, cutmix=1.0)
    draws = draw(cfg, n_images=400, epoch=0)
    is_cut = draws[:, 17] > draws[:, 15]
    assert 0.35 < is_cut.mean() < 0.6
    known = torch.tensor([[True, True], [False, True]])
    _, _, both = mix(noise(2), torch.zeros(2, 2), known, torch.from_numpy(draws[:2]), cfg)
    assert both.tolist() == [[False, True], [False, True]]


# Images that grow


def sides(**changes: Any) -> list[int]:
    cfg = Config(**changes)
    return [side_px(cfg, epoch=epoch) for epoch in range(cfg.epochs)]


def test_images_grow_along_a_line_by_32_px_and_stay_at_full_size() -> None:
    grown = sides(image_size_px=256, start_size_px=128, epochs=16, growing_share=0.75)
    assert grown == [128] * 3 + [160] * 3 + [192] * 3 + [224] * 3 + [256] * 4


def test_images_are_of_full_size_throughout_unless_they_start_smaller() -> None:
    assert set(sides(image_size_px=250)) == {250}
    assert set(sides(image_size_px=256, start_size_px=256)) == {256}
    assert set(sides(image_size_px=256, start_size_px=64, growing_share=0.0)) == {256}
    assert sides(image_size_px=256, start_size_px=64, epochs=1) == [256]


@given(
    start=st.integers(1, 8), full=st.integers(256, 1024), epochs=st.integers(1, 60),
    share=st.floats(0, 1),
)  # fmt: skip
def test_images_never_shrink_and_the_last_epoch_is_of_full_size(
    start: int, full: int, epochs: int, share: float
) -> None:
    grown = sides(image_size_px=full, start_size_px=32 * start, epochs=epochs, growing_share=share)
    assert grown == sorted(grown) and grown[-1] == full
    assert grown[0] in (32 * start, full)
    assert all(side % 32 == 0 for side in grown if side != full)
    assert grown.count(full) >= (1 - share) * epochs - 1e-9


def test_resizing_is_torchvisions_for_each_image_by_itself() -> None:
    images = torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8)
    assert resize(images, SIDE) is images
    out = resize(images, 32)
    assert out.shape == (5, 3, 32, 32) and out.dtype == torch.uint8
    for image, small in zip(images, out, strict=True):
        expected = tvf.resize(image.float(), [32, 32], antialias=True).round()
        assert (small - expected).abs().max() <= 1
        assert torch.equal(resize(image[None], 32)[0], small)


def test_what_is_drawn_fits_the_size_of_its_epoch() -> None:
    cfg = config(start_size_px=32, epochs=4, **STILL | {"translate": 0.25}, erase=1.0, cutmix=1.0)
    for epoch, side in ((0, 32), (3, SIDE)):
        assert side_px(cfg, epoch=epoch) == side
        draws = draw(cfg, n_images=200, epoch=epoch)
        shift = draws[:, [2, 5]] * side / 2
        assert np.abs(shift - shift.round()).max() < 1e-4
        assert 0.9 * side / 4 < np.abs(shift).max() <= side / 4
        for columns in (slice(10, 14), slice(15, 19)):
            assert 0.9 * side < draws[:, columns].max() <= side
            assert (draws[:, columns] == draws[:, columns].round()).all()
        images = torch.randint(0, 256, (200, 3, SIDE, SIDE), dtype=torch.uint8)
        targets = torch.eye(200)
        small = IMAGENET(resize(images, side))
        mixed, soft, _ = mix(small, targets, None, torch.from_numpy(draws), cfg)
        own = (mixed == small).all(dim=1).float().mean(dim=(1, 2))
        torch.testing.assert_close(soft.diagonal(), own, rtol=0, atol=0.01)


def test_each_field_that_transforms_read_counts_as_changing_images_or_is_known_not_to() -> None:
    modules = (transforms, auto_augment)
    read = {n for m in modules for n in re.findall(r"config\.(\w+)", inspect.getsource(m))}
    harmless = {"seed", "epochs", "image_size_px", "growing_share"}
    of_randaugment = {"randaugment_number", "randaugment_magnitude"}  # which auto_augment turns on
    assert read - harmless - of_randaugment == set(transforms._NEUTRAL)
    assert transforms.fields_that_change_images(Config()) == [
        "hflip", "rotate_deg", "translate", "scale_min", "scale_max"
    ]  # fmt: skip
