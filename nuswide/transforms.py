"""Augmentation and normalisation of a batch, on the device it is on.

Owns what happens to pixels between the uint8 images and the network. Parameters are drawn per
image from (seed, epoch, image index), so that batch order, resuming and the number of processes do
not change what an image sees. Never decodes a picture.

    draws = draw_affine(config, n_images=len(manifest), epoch=3)
    batch = affine(normalize(images), draws[indices])
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nuswide.config import Config

# Mean and deviation of ImageNet's RGB channels, which torchvision's weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """Turn uint8 images (N, 3, H, W) into float32, less ImageNet's mean, over its deviation."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std


def draw_affine(config: Config, *, n_images: int, epoch: int) -> NDArray[np.float32]:
    """Draw every image's flip, angle, shifts and zoom for one epoch; (n_images, 2, 3) float32.

    Each 2x3 matrix takes output to input coordinates, both in [-1, 1], as affine_grid wants them.
    The ranges are those of torchvision's RandomHorizontalFlip and RandomAffine, in that order.
    """
    rng = np.random.default_rng([config.seed, epoch, 1])
    flip, turn, right, down, zoom = rng.random((n_images, 5)).T
    angle = np.deg2rad(config.rotate_deg) * (2 * turn - 1)
    scale = config.scale_min + (config.scale_max - config.scale_min) * zoom
    # torchvision shifts by whole pixels, which keeps nearest-pixel sampling undistorted.
    most_px = config.translate * config.image_size_px
    shift = np.round(most_px * (2 * np.stack([right, down]) - 1)) * 2 / config.image_size_px
    mirror = np.where(flip < config.hflip, -1.0, 1.0)
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    rotation = np.array([[mirror * cos, mirror * sin], [-sin, cos]])  # (2, 2, n)
    offset = -np.einsum("ijn,jn->in", rotation, shift)
    return np.concatenate([rotation, offset[:, None]], axis=1).transpose(2, 0, 1).astype(np.float32)


def affine(images: Tensor, theta: Tensor) -> Tensor:
    """Warp normalised images (N, 3, H, W) by theta (N, 2, 3), each by its own.

    Takes the nearest pixel, as the article does; what comes from outside is 0, the mean colour.
    """
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)
