"""Augmentation and normalization of a batch, on its device.

Owns the pixel operations between the uint8 images and the network. Parameters are drawn per image
from (seed, epoch, image index), so that batch order, resuming and the number of processes do not
change the augmentation of an image. Never decodes an image.

    >>> config = Config(image_size_px=32)
    >>> draws = torch.from_numpy(draw(config, n_images=9, epoch=3))
    >>> images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    >>> augment(images, draws[[4, 7]], config).shape
    torch.Size([2, 3, 32, 32])
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from nuswide.config import Config
from nuswide.data.auto_augment import LUMA, apply_operations, draw_operations

Array = NDArray[np.float32]

# Fraction of the area, and aspect ratio, of an erased rectangle: Zhong et al., arXiv:1708.04896.
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
# The columns of the values drawn for an image, and their number.
_WIDTHS = {"theta": 6, "color": 4, "erased": 4, "share": 1, "pasted": 4}
_ENDS = np.cumsum(list(_WIDTHS.values()))
_COLUMNS = {
    name: slice(int(end - width), int(end))
    for (name, width), end in zip(_WIDTHS.items(), _ENDS, strict=True)
} | {
    "operations": slice(int(_ENDS[-1]), None)
}  # two per operation, see auto_augment.draw_operations


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of red, green and blue in [0, 1]; ImageNet's by default."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize images (N, 3, H, W): uint8, or floats in [0, 1]."""
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return (pixels - _channels(self.mean, images.device)) / _channels(self.std, images.device)


IMAGENET = Normalization()


# The fields that change an image in training, with the value by which they do not.
_NEUTRAL = {
    "start_size_px": 0, "hflip": 0, "rotate_deg": 0, "translate": 0, "scale_min": 1,
    "scale_max": 1, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "erase": 0,
    "mixup": 0, "cutmix": 0, "auto_augment": "none",
}  # fmt: skip


def fields_that_change_images(config: Config) -> list[str]:
    """Return the names of the fields by which an image differs between epochs."""
    return [name for name, neutral in _NEUTRAL.items() if getattr(config, name) != neutral]


def _channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """One number per channel, (1, 3, 1, 1), filled on the device: a copy would synchronize."""
    filled = [torch.full((1, 1, 1, 1), value, device=device) for value in values]
    return torch.cat(filled, dim=1)


def side_px(config: Config, *, epoch: int) -> int:
    """Return the side of an epoch's training images, which depends only on its number.

    It grows linearly, in steps of 32, and at least the last epoch has the full size. Source: Tan
    and Le, EfficientNetV2, arXiv:2104.00298, where regularization grows too; ours is constant.
    """
    full, start = config.image_size_px, config.start_size_px
    growing = min(int(config.growing_share * config.epochs), config.epochs - 1)
    if not start or epoch >= growing:
        return full
    return start + (full - start) * epoch // growing // 32 * 32


def resize(images: Tensor, side: int) -> Tensor:
    """Resize uint8 images (N, 3, S, S) to (N, 3, side, side), with antialiasing."""
    return images if images.shape[-1] == side else tvf.resize(images, [side, side], antialias=True)


def draw(config: Config, *, n_images: int, epoch: int) -> Array:
    """Draw the augmentation of every image in one epoch; (n_images, at least 19)."""
    side = side_px(config, epoch=epoch)
    rngs = [np.random.default_rng([config.seed, epoch, stream]) for stream in range(1, 6)]
    share, pasted = _draw_mix(config, side, rngs[3], n_images)
    parts = {
        "theta": _draw_affine(config, side, rngs[0], n_images).reshape(n_images, 6),
        "color": _draw_color(config, rngs[1], n_images),
        "erased": _draw_erased(config, side, rngs[2], n_images),
        "share": share[:, None],
        "pasted": pasted,
        "operations": draw_operations(config, rngs[4], n_images),
    }
    return np.concatenate([parts[name] for name in _COLUMNS], axis=1, dtype=np.float32)


def _draw_affine(
    config: Config, side: int, rng: np.random.Generator, n_images: int
) -> NDArray[np.float64]:
    """Draw flip, angle, shifts and zoom; (n_images, 2, 3).

    Each 2x3 matrix maps output to input coordinates, both in [-1, 1], as affine_grid requires.
    The ranges are those of torchvision's RandomHorizontalFlip and RandomAffine, in that order.
    """
    flip, turn, right, down, zoom = rng.random((n_images, 5)).T
    angle = np.deg2rad(config.rotate_deg) * (2 * turn - 1)
    scale = config.scale_min + (config.scale_max - config.scale_min) * zoom
    # torchvision shifts by whole pixels, which keeps nearest-pixel sampling undistorted.
    most_px = config.translate * side
    shift = np.round(most_px * (2 * np.stack([right, down]) - 1)) * 2 / side
    mirror = np.where(flip < config.hflip, -1.0, 1.0)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    rotation = np.array([[mirror * cos, mirror * sin], [-sin, cos]])  # (2, 2, n)
    offset = -np.einsum("ijn,jn->in", rotation, shift)
    return np.concatenate([rotation, offset[:, None]], axis=1).transpose(2, 0, 1)


def _draw_color(config: Config, rng: np.random.Generator, n_images: int) -> NDArray[np.float64]:
    """Draw factors of brightness, contrast and saturation and a shift of hue, as ColorJitter."""
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    low = np.maximum(0, 1 - spread)
    low[3] = 1 - config.hue
    high = 1 + spread
    drawn = low + (high - low) * rng.random((n_images, 4))
    drawn[:, 3] -= 1  # the neutral shift of hue is 0
    return drawn


def _draw_erased(
    config: Config, side: int, rng: np.random.Generator, n_images: int
) -> NDArray[np.float64]:
    """Draw rectangles, empty for images that are left whole; (n_images, 4), see _inside."""
    chance, area, ratio, *position = rng.random((n_images, 5)).T
    share = _ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * area
    aspect = np.exp(np.log(_ERASED_RATIO[0]) + np.diff(np.log(_ERASED_RATIO)) * ratio)
    sides = np.stack([np.sqrt(share / aspect), np.sqrt(share * aspect)], axis=1).clip(max=1)
    return _rectangles(sides * (chance < config.erase)[:, None], np.stack(position, axis=1), side)


def _rectangles(
    sides: NDArray[np.float64], position: NDArray[np.float64], side: int
) -> NDArray[np.float64]:
    """Whole-pixel rectangles (n, 4) of given sides within the image, position (n, 2) in [0, 1)."""
    sides_px = np.round(sides * side)
    start_px = np.floor(position * (side - sides_px + 1))
    return np.concatenate([start_px, start_px + sides_px], axis=1)


def _draw_mix(
    config: Config, side: int, rng: np.random.Generator, n_images: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the share of itself that each image keeps, (n,), and the pasted rectangle, (n, 4).

    With both mixup and cutmix, each image gets either with equal probability.
    """
    coin, *position = rng.random((n_images, 3)).T
    whole, cut = (
        rng.beta(alpha, alpha, n_images) if alpha else np.ones(n_images)
        for alpha in (config.mixup, config.cutmix)
    )
    sides = np.sqrt(1 - cut)[:, None].repeat(2, axis=1)
    pasted = _rectangles(sides, np.stack(position, axis=1), side)
    area = (pasted[:, 2:] - pasted[:, :2]).prod(axis=1) / side**2
    is_cut = coin < (0.5 if config.mixup and config.cutmix else float(config.cutmix > 0))
    return np.where(is_cut, 1 - area, whole), np.where(is_cut[:, None], pasted, 0)


def augment(
    images: Tensor, draws: Tensor, config: Config, normalize: Normalization = IMAGENET
) -> Tensor:
    """Augment and normalize uint8 images (N, 3, S, S), each by its row of draws.

    draws: of an epoch with images of this size; on the CPU whatever the device of the images,
    because auto_augment would otherwise synchronize with the GPU.
    """
    if config.auto_augment != "none":
        images = apply_operations(images, draws[:, _COLUMNS["operations"]])
    draws = draws.to(images.device, non_blocking=True)
    pixels = images.float() / 255
    if config.brightness or config.contrast or config.saturation or config.hue:
        pixels = jitter(pixels, draws[:, _COLUMNS["color"]])
    out = affine(normalize(pixels), draws[:, _COLUMNS["theta"]].reshape(-1, 2, 3))
    if config.erase:  # by 0, the mean colour
        out = out.masked_fill(_inside(draws[:, _COLUMNS["erased"]], out), 0.0)
    return out


def affine(images: Tensor, theta: Tensor) -> Tensor:
    """Warp each of the normalized images (N, 3, H, W) by its own theta (N, 2, 3).

    Nearest-pixel sampling, as in the article; pixels from outside are 0, the mean colour.
    """
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, each image by its factors.

    images: (N, 3, H, W) in [0, 1]. factors: (N, 4), the last one the shift of hue in turns. Each
    change equals torchvision's functional of its name; torchvision also randomizes their order.
    """
    brightness, contrast, saturation, hue = (f.view(-1, 1, 1, 1) for f in factors.unbind(1))
    images = (images * brightness).clamp(0, 1)
    mean = _gray(images).mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    gray = _gray(images)
    images = (gray + (images - gray) * saturation).clamp(0, 1)
    return _turn_hue(images, hue)


def _gray(images: Tensor) -> Tensor:
    return (images * _channels(LUMA, images.device)).sum(dim=1, keepdim=True)


def _turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of HSV by a fraction of a turn."""
    value, top = images.max(dim=1, keepdim=True)
    chroma = value - images.min(dim=1, keepdim=True).values
    red, green, blue = images.split(1, dim=1)
    apart = chroma.clamp(min=1e-12)
    sextants = torch.cat([
        (green - blue) / apart, 2 + (blue - red) / apart, 4 + (red - green) / apart
    ], dim=1)  # fmt: skip
    hue = sextants.gather(1, top) + 6 * turns
    # Smith 1978 in one line: k is the position in the sextants, offset by channel.
    k = (_channels((5.0, 3.0, 1.0), images.device) + hue) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _inside(rectangles: Tensor, images: Tensor) -> Tensor:
    """Mask the pixels inside of top, left, bottom, right; (N, 1, H, W) bool."""
    top, left, bottom, right = (r.view(-1, 1, 1, 1) for r in rectangles.unbind(1))
    row = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
    column = torch.arange(images.shape[3], device=images.device).view(1, 1, 1, -1)
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def mix(
    images: Tensor, targets: Tensor, known: Tensor | None, draws: Tensor, config: Config
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Blend each image and its targets (N, C) with those of its neighbour, by its row of draws.

    Neighbours are the 1st and 2nd, the 3rd and 4th, and so on; an odd last one is unchanged. A
    mixed entry is known if both were. Source: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899.
    """
    if not (config.mixup or config.cutmix):
        return images, targets, known
    draws = draws.to(images.device, non_blocking=True)
    n = len(images)
    own = torch.arange(n, device=images.device)
    other = torch.where((own ^ 1) < n, own ^ 1, own)
    share = draws[:, _COLUMNS["share"]]  # (N, 1)
    rectangles = draws[:, _COLUMNS["pasted"]]
    is_cut = (rectangles[:, 2:] > rectangles[:, :2]).all(dim=1).view(-1, 1, 1, 1)
    kept = torch.where(is_cut, (~_inside(rectangles, images)).float(), share.view(-1, 1, 1, 1))
    images = images * kept + images[other] * (1 - kept)
    targets = targets.float()
    targets = targets * share + targets[other] * (1 - share)
    return images, targets, None if known is None else known & known[other]
