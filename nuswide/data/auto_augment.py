"""RandAugment and TrivialAugment on a batch of uint8 images, on its device.

Owns OPERATIONS and their magnitudes. Operations are drawn per image; each operation runs once, on
all the images that drew it. Never decodes an image.

Sources: Cubuk et al., RandAugment, arXiv:1909.13719; Mueller and Hutter, TrivialAugment,
arXiv:2103.10158. Magnitudes are torchvision's, in 30 equal steps.
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

LUMA = (0.2989, 0.587, 0.114)  # weights of red, green and blue in gray, as in torchvision
_STEPS = 30
_OUTSIDE = (124.0, 116.0, 104.0)  # fill colour: the mean of ImageNet
Change = Callable[[Tensor, Tensor], Tensor]


class Operation(NamedTuple):
    """A change of images (n, 3, S, S) uint8, each by its own magnitude (n,), and its range.

    The magnitude is `neutral` at step 0 and differs by `span` at step 30 of RandAugment, by
    `wide_span` at step 30 of TrivialAugment; in either direction if `is_signed`.
    """

    change: Change
    neutral: float = 0.0
    span: float = 0.0
    wide_span: float = 0.0
    is_signed: bool = False


def n_operations(config: Config) -> int:
    """Return the number of operations applied to each image in sequence."""
    numbers = {"randaugment": config.randaugment_number, "trivialaugment": 1}
    return numbers.get(config.auto_augment, 0)


def draw_operations(config: Config, rng: np.random.Generator, n_images: int) -> NDArray[np.float64]:
    """Draw each image's operations, as indices into OPERATIONS, and magnitudes; (N, 2 * number).

    TrivialAugment also draws the step of the magnitude; RandAugment uses one step for all.
    """
    shape = (n_images, n_operations(config))
    choice, step, side = np.moveaxis(rng.random((*shape, 3)), -1, 0)
    is_wide = config.auto_augment == "trivialaugment"
    steps = np.floor((_STEPS + 1) * step) if is_wide else config.randaugment_magnitude
    chosen = (len(OPERATIONS) * choice).astype(int)
    neutral, span, wide_span, is_signed = np.array([op[1:] for op in OPERATIONS.values()]).T
    sign = 1 - 2 * is_signed[chosen] * (side < 0.5)
    magnitude = neutral[chosen] + sign * steps / _STEPS * (wide_span if is_wide else span)[chosen]
    return np.stack([chosen, magnitude], axis=-1).reshape(n_images, 2 * shape[1])


def apply_operations(images: Tensor, draws: Tensor) -> Tensor:
    """Apply to uint8 images (N, 3, S, S) the operations in rows of draw_operations.

    draws: on the CPU; reading them from a GPU would synchronize.
    """
    on_device = draws.to(images.device, non_blocking=True)
    for i in range(0, draws.shape[1], 2):
        counts = torch.bincount(draws[:, i].long(), minlength=len(OPERATIONS)).tolist()
        # Sorted by operation, so that each is applied to one slice, whose bounds are on the CPU.
        order = on_device[:, i].argsort(stable=True)
        parts = zip(
            OPERATIONS.values(), images[order].split(counts), on_device[order, i + 1].split(counts),
            strict=True,
        )  # fmt: skip
        changed = [op.change(part, magnitude) for op, part, magnitude in parts if len(part)]
        images = torch.cat(changed)[order.argsort()]
    return images


# All arithmetic is elementwise or on integers, so that an image's result does not depend on its
# batch, and none of it synchronizes with a GPU, as some of torchvision's operations do.


def _warp(images: Tensor, to_x: list[Tensor], to_y: list[Tensor]) -> Tensor:
    """Sample the nearest input pixel for each output pixel.

    to_x, to_y: a, b and c, (n,) each: output (x, y) is sampled at a * x + b * y + c of the input,
    in coordinates from -1 to 1.
    """
    n, side = len(images), images.shape[-1]
    at = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    x, y = at.view(1, 1, -1), at.view(1, -1, 1)
    sampled = [
        a.view(n, 1, 1) * x + b.view(n, 1, 1) * y + c.view(n, 1, 1) for a, b, c in (to_x, to_y)
    ]
    outside = [torch.full((1, 1, 1), level, device=images.device) for level in _OUTSIDE]
    fill = torch.cat(outside)  # filled on the device: a copy would synchronize
    grid = torch.stack(sampled, dim=-1)
    moved = F.grid_sample(images - fill, grid, mode="nearest", align_corners=False)
    return (moved + fill).to(torch.uint8)


def _shear_x(images: Tensor, slope: Tensor) -> Tensor:
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _warp(images, [one, slope, slope], [zero, one, zero])  # the top row is fixed


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
    """Truncate a fraction of the side to whole pixels; in units of half the side."""
    side = images.shape[-1]
    return (share * side).trunc() * 2 / side


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    angle, zero = torch.deg2rad(degrees), torch.zeros_like(degrees)
    cos, sin = angle.cos(), angle.sin()
    return _warp(images, [cos, -sin, zero], [sin, cos, zero])


def _blend(images: Tensor, other: Tensor | float, share: Tensor) -> Tensor:
    """Interpolate from another image to the images; a share above 1 extrapolates."""
    mixed = other + share.view(-1, 1, 1, 1) * (images - other)
    return mixed.clamp(0, 255).to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Convert to integer gray levels; (n, 1, S, S) float32."""
    red, green, blue = (
        weight * level for weight, level in zip(LUMA, images.split(1, dim=1), strict=True)
    )
    return (red + green + blue).floor()


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    dtype = torch.float32 if images.device.type == "mps" else torch.float64  # mps has no float64
    mean = _gray(images).mean(dim=(1, 2, 3), keepdim=True, dtype=dtype)
    return _blend(images, mean.float(), factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a 3x3 mean whose centre has weight 5; the border is unchanged."""
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
    """Stretch each channel to the full range; a constant channel is unchanged."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    is_flat = low == high
    levels = torch.where(is_flat, 1.0, (high - low) * (1 / 255))
    stretched = (images - torch.where(is_flat, 0, low)) / levels
    return stretched.clamp(0, 255).to(torch.uint8)


# Shifts are fractions of the side: TrivialAugment's 32 px refer to 224.
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
