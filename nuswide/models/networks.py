"""Networks: a backbone of torchvision or timm, and one of our heads.

Owns their composition. Never trains, nor moves a model to a device.

    >>> model = create_model(Config(backbone="resnet18", image_size_px=32), n_labels=27)
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 27])
"""

import torch
from torch import Tensor, nn

from nuswide.config import Config, lookup
from nuswide.data.label_stats import TrainLabels
from nuswide.data.transforms import Normalization
from nuswide.models.backbones import count_features, create_backbone
from nuswide.models.heads import HEADS
from nuswide.models.initial_weights import load_weights
from nuswide.models.preprocessing import normalization_of, resolve_preprocessing


class TaggerNet(nn.Module):
    """Network from normalized images (N, 3, H, W) to logits (N, C).

    normalize: the normalization that the backbone was, or is to be, trained with. test_flips:
    whether Scorer averages the scores of an image and its mirror image.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        normalize: Normalization,
        test_flips: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.normalize = normalize
        self.test_flips = test_flips

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, C) of normalized images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class Scorer(nn.Module):
    """Network from uint8 images (N, 3, S, S) to scores (N, C) in [0, 1].

    Evaluation, export and serving all score by it.
    """

    def __init__(self, model: TaggerNet) -> None:
        super().__init__()
        self.model = model
        self.test_flips = model.test_flips

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (N, C) of uint8 images; averaged over flips with test_flips."""
        if self.test_flips:
            images = torch.cat([images, images.flip(-1)])
        scores = torch.sigmoid(self.model(self.model.normalize(images)).float())
        return scores.unflatten(0, (2, -1)).mean(0) if self.test_flips else scores

    def of_features(self, features: Tensor) -> Tensor:
        """Return the scores (N, C) of the backbone's maps (N, F, h, w) of images."""
        scores: Tensor = torch.sigmoid(self.model.head(features).float())
        return scores


def create_model(config: Config, *, n_labels: int, train: TrainLabels | None = None) -> TaggerNet:
    """Build the network that the config names, from its seed, and load its initial weights.

    train: labels of the training split, for heads that depend on them, such as gcn. Raises
    click.UsageError for an unknown name, click.ClickException for weights that cannot be loaded.
    """
    config, _ = resolve_preprocessing(config)
    torch.manual_seed(config.seed)
    create_head = lookup(HEADS, "head", config.head)
    backbone = create_backbone(config)
    head = create_head(count_features(backbone, config), n_labels, config, train)
    normalize = normalization_of(config)
    model = TaggerNet(backbone, head, normalize=normalize, test_flips=config.test_flips)
    load_weights(model, config, train.names if train else None)
    return model
