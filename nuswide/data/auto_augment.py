"""RandAugment and TrivialAugment on a batch of uint8 images, on the device it is on.

Owns OPERATIONS and the strengths that the two give them. Each image's operations are drawn by
itself, and one that many images drew runs on all of them at once. Never decodes a picture.

    draws = draw_operations(config, rng, n_images)  # (N, 2 * number)
    images = apply_operations(images, torch.from_numpy(draws[indices]))

Sources: Cubuk et al., RandAugment, arXiv:1909.13719; Mueller and Hutter, TrivialAugment,
arXiv:2103.10158. Strengths are torchvision's, in 30 equal steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from nuswide.config import Config

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in gray, as torchvision has it
_STEPS = 30
_OUTSIDE = (124.0, 116.0, 104.0)  # what comes from outside of a picture: ImageNet's mean colour
Change = Callable[[Tensor, Tensor], Tensor]


class Operation(NamedTuple):
    """A change of images (n, 3, S, S) uint8, each by its own strength (n,), and which there are.

    The strength is `neutral` at step 0, and off by `span` at step 30 of RandAugment, by `wide_span`
    at that of TrivialAugment; to either side if `is_signed`.
    """

    change: Change
    neutral: float = 0.0
    span: float = 0.0
    wide_span: float = 0.0
    is_signed: bool = False


def n_operations(config: Config) -> int:
    """Operations that an image goes through, one after the other."""
    numbers = {"randaugment": config.randaugment_number, "trivialaugment": 1}
    return numbers.get(config.auto_augment, 0)


def draw_operations(config: Config, rng: np.random.Generator, n_images: int) -> NDArray[np.float64]:
    """Draw each image's operations, by their place in OPERATIONS, with strengths; (N, 2 * number).

    TrivialAugment draws the step of a strength, too; RandAugment has the same one for all.
    """
    shape = (n_images, n_operations(config))
    place, step, side = np.moveaxis(rng.random((*shape, 3)), -1, 0)
    is_wide = config.auto_augment == "trivialaugment"
    steps = np.floor((_STEPS + 1) * step) if is_wide else config.randaugment_magnitude
    chosen = (len(OPERATIONS) * place).astype(int)
    neutral, span, wide_span, is_signed = np.array([op[1:] for op in OPERATIONS.values()]).T
    sign = 1 - 2 * is_signed[chosen] * (side < 0.5)
    strength = neutral[chosen] + sign * steps / _STEPS * (wide_span if is_wide else span)[chosen]
    return np.stack([chosen, strength], axis=-1).reshape(n_images, 2 * shape[1])


def apply_operations(images: Tensor, draws: Tensor) -> Tensor:
    """Put uint8 images (N, 3, S, S) through their operations, as rows of draw_operations say.

    draws: on the CPU; from a GPU, it would have to be waited for.
    """
    there = draws.to(images.device, non_blocking=True)
    for i in range(0, draws.shape[1], 2):
        counts = torch.bincount(draws[:, i].long(), minlength=len(OPERATIONS)).tolist()
        # Sorted by their operations, so that each takes one slice, whose ends are known here.
        order = there[:, i].argsort(stable=True)
        parts = zip(
            OPERATIONS.values(), images[order].split(counts), there[order, i + 1].split(counts),
            strict=True,
        )  # fmt: skip
        changed = [op.change(part, strength) for op, part, strength in parts if len(part)]
        images = torch.cat(changed)[order.argsort()]
    return images


# All arithmetic is of one element or of whole numbers, so that an image comes out the same whatever
# is beside it in the batch; and none needs an answer from a GPU, as some of torchvision's does.


def _warp(images: Tensor, to_x: list[Tensor], to_y: list[Tensor]) -> Tensor:
    """Take each pixel from where the input has it, the nearest one.

    to_x, to_y: (n,) each, a, b and c of the place a * x + b * y + c in the input of what is at x, y
    of the output, from -1 to 1.
    """
    n, side = len(images), images.shape[-1]
    at = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    x, y = at.view(1, 1, -1), at.view(1, -1, 1)
    places = [
        a.view(n, 1, 1) * x + b.view(n, 1, 1) * y + c.view(n, 1, 1) for a, b, c in (to_x, to_y)
    ]
    outside = [torch.full((1, 1, 1), level, device=images.device) for level in _OUTSIDE]
    fill = torch.cat(outside)  # filled in there, as a copy waits for the device
    grid = torch.stack(places, dim=-1)
    moved = F.grid_sample(images - fill, grid, mode="nearest", align_corners=False)
    return (moved + fill).to(torch.uint8)


def _shear_x(images: Tensor, slope: Tensor) -> Tensor:
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _warp(images, [one, slope, slope], [zero, one, zero])  # the top row stays where it is


def _shear_y(images: Tensor, slope: Tensor) -> Tensor:
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _warp(images, [one, zero, zero], [slope, one, slope])


def _translate_x(images: Tensor, share: Tensor) -> Tensor:
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _warp(images, [one, zero, -_whole_px(share, images)], [zero, one, zero])


def _translate_y(images: Tensor, share: Tensor) -> Tensor:
    one, zero = torch.ones_like(share), torch.zeros_like(share)
    return _warp(images, [one, zero, zero], [zero, one, -_whole_px(share, images)])


def _whole_px(share: Tensor, images: Tensor) -> Tensor:
    """A share of the side, cut to whole pixels, in units of half the side."""
    side = images.shape[-1]
    return (share * side).trunc() * 2 / side


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    angle, zero = torch.deg2rad(degrees), torch.zeros_like(degrees)
    cos, sin = angle.cos(), angle.sin()
    return _warp(images, [cos, -sin, zero], [sin, cos, zero])


def _blend(images: Tensor, other: Tensor | float, share: Tensor) -> Tensor:
    """Images for a share, and for the rest another picture; a share above 1 leads away from it."""
    mixed = other + share.view(-1, 1, 1, 1) * (images - other)
    return mixed.clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Whole levels of gray; (n, 1, S, S) float32."""
    red, green, blue = (
        weight * level for weight, level in zip(LUMA, images.split(1, dim=1), strict=True)
    )
    return (red + green + blue).floor()


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    dtype = torch.float32 if images.device.type == "mps" else torch.float64  # mps has no float64
    mean = _gray(images).mean(dim=(1, 2, 3), keepdim=True, dtype=dtype)
    return _blend(images, mean.float(), factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of 3x3 pixels, the middle one five times; the edge stays."""
    smooth = images.float()
    inner = smooth[..., 1:-1, 1:-1]
    inner.copy_(((9 * F.avg_pool2d(smooth, 3, stride=1) + 4 * inner) / 13).round())
    return _blend(images, smooth, factor)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    kept = (256 - 2 ** (8 - bits.round())).to(torch.uint8)
    return images & kept.view(-1, 1, 1, 1)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold.view(-1, 1, 1, 1), 255 - images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel from black to white; one of a single level stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    is_flat = low == high
    levels = torch.where(is_flat, 1.0, (high - low) * (1 / 255))
    stretched = (images - torch.where(is_flat, 0, low)) / levels
    return stretched.clamp(0, 255).to(torch.uint8)


# Shifts are shares of the side: TrivialAugment's 32 px are taken to be of 224.
OPERATIONS: dict[str, Operation] = {
    "identity": Operation(lambda images, _: images),
    "shear_x": Operation(_shear_x, 0, 0.3, 0.99, True),
    "shear_y": Operation(_shear_y, 0, 0.3, 0.99, True),
    "translate_x": Operation(_translate_x, 0, 150 / 331, 32 / 224, True),
    "translate_y": Operation(_translate_y, 0, 150 / 331, 32 / 224, True),
    "rotate": Operation(_rotate, 0, 30, 135, True),
    "brightness": Operation(lambda images, by: _blend(images, 0.0, by), 1, 0.9, 0.99, True),
    "color": Operation(lambda images, by: _blend(images, _gray(images), by), 1, 0.9, 0.99, True),
    "contrast": Operation(_contrast, 1, 0.9, 0.99, True),
    "sharpness": Operation(_sharpness, 1, 0.9, 0.99, True),
    "posterize": Operation(_posterize, 8, -4, -6),
    "solarize": Operation(_solarize, 255, -255, -255),
    "autocontrast": Operation(_autocontrast),
    "equalize": Operation(lambda images, _: tvf.equalize(images)),
}
