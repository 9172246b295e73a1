"""The frozen backbone's feature maps, computed once in place of in each epoch.

Owns when that changes nothing but the time, and the name of the maps' cache.
"""

import hashlib
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from nuswide.config import Config
from nuswide.core import distributed
from nuswide.data.dataset import Dataset
from nuswide.data.feature_cache import open_features
from nuswide.data.transforms import fields_that_change_images
from nuswide.models.networks import TaggerNet
from nuswide.models.timm_networks import TIMM
from nuswide.models.weights import weights_digest
from nuswide.training.checkpoint import State
from nuswide.training.step import choose_device


def with_features(
    config: Config, model: TaggerNet, data: Dataset, resumed: State | None = None
) -> Dataset:
    """Return the data set with the feature maps on which the head can train, if it can.

    It can if the backbone is frozen and always sees the same pixels of an image. config: resolved.
    resumed: the checkpoint whose weights the model takes.
    """
    if resumed:  # a file of initial weights may have changed since
        model.load_state_dict(resumed["model"])
    if config.freeze != "backbone" or not config.cache_features or data.folder is None:
        return data
    changing = fields_that_change_images(config)
    if config.test_flips:
        changing.append("test_flips")
    if changing:
        distributed.say(
            f"the frozen backbone runs in every epoch, because images change by "
            f"{', '.join(changing)}; experiments/probe.yaml turns all of that off"
        )
        return data
    device = choose_device(config.device)
    model.to(device).eval()

    def compute(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            inputs = model.normalize(torch.from_numpy(images).to(device))
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            maps: NDArray[np.float32] = model.backbone(inputs).float().cpu().numpy()
        return maps

    _, *shape = compute(np.zeros_like(data.images[:1])).shape
    return open_features(data, _key(config, model, device), tuple(shape), compute)


def _key(config: Config, model: TaggerNet, device: torch.device) -> str:
    """Return what maps depend on besides the pixels; 16 hex digits.

    Versions of the libraries and kinds of devices may round differently.
    """
    parts = [config.backbone, config.mean, config.std, weights_digest(model.backbone)]
    parts += [device.type, torch.__version__]
    if config.backbone.startswith(TIMM):
        parts.append(version("timm"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
