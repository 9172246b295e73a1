"""The backbone that a file of weights is for, if it is not for the one that was asked for.

Owns the search among the networks of the nearest names. Builds them without memory, on torch's meta
device.
"""

import difflib
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from nuswide.models.backbones import BACKBONES
from nuswide.models.timm_networks import TIMM, timm_names, untrained

_DIGITS = re.compile(r"\d+")
_MOST_BUILT = 20  # for a hint, of timm's 1,300; one takes about a tenth of a second

Fits = Callable[[dict[str, Tensor]], bool]


def find_backbone(backbone: str, hint: str, fits: Fits) -> str | None:
    """Return the nearest backbone whose state dict fits; None if there is none.

    backbone: that does not fit. hint: what else may be like the name, such as that of the file.
    """
    for name in _nearest_names(backbone, hint):
        try:
            with torch.device("meta"):
                shapes = _create(name)
        except Exception:  # many types, as not every network can be built in this way
            continue
        if fits(shapes):
            return name
    return None


def _create(name: str) -> dict[str, Tensor]:
    network = untrained(name.removeprefix(TIMM)) if name.startswith(TIMM) else BACKBONES[name]()
    return network.state_dict()


def _nearest_names(backbone: str, hint: str) -> Iterable[str]:
    """Return torchvision's backbones, and timm's of the nearest names; first those of its library.

    Numbers do not count: resnet18 is nearer to resnet50 than to resnet18d.
    """
    known: dict[str, list[str]] = {}
    for name in timm_names():
        known.setdefault(_DIGITS.sub("0", name), []).append(f"{TIMM}{name}")
    near = []
    for text in (backbone.removeprefix(TIMM).partition(".")[0], hint):
        kinds = difflib.get_close_matches(_DIGITS.sub("0", text), known, n=_MOST_BUILT)
        near += [name for kind in kinds for name in known[kind]][:_MOST_BUILT]
    groups = [near, list(BACKBONES)] if backbone.startswith(TIMM) else [list(BACKBONES), near]
    return dict.fromkeys(groups[0] + groups[1])
