"""The offline sample: a small, long-tailed, multi-label data set drawn from a seed.

Owns the folder that it is written to: train.json, test.json and images/ in the article's format,
and sample.json with the arguments. Never reads a data set, nor needs a network.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from nuswide.data.sample.scenes import LABELS, compose

# Incremented with every change of the images, so that an older folder is not taken for current.
_DRAWING = 1


def split_test(rows: Sequence[Sequence[str]], seed: int, fraction: float) -> set[int]:
    """Choose the test images from `rows` of labels, spread evenly over the rare labels."""
    counts = Counter(label for row in rows for label in row)
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    order.sort(key=lambda i: min((counts[label], label) for label in rows[i]))
    n_test = round(len(rows) * fraction)
    return {order[int((k + 0.5) * len(rows) / n_test)] for k in range(n_test)}


def draw_sample(
    out: Path, *, images: int = 600, size_px: int = 128, seed: int = 0, test_fraction: float = 1 / 6
) -> None:
    """Draw the data set into the folder `out`, which appears only when it is complete.

    The same arguments give the same bytes, and a folder that holds exactly that is left unchanged.
    Raises click.ClickException if `out` is anything else, if a split would be empty, or if size_px
    is below 16, where no object can be recognized.
    """
    if not 0 < round(images * test_fraction) < images:
        raise click.ClickException(f"{images} images leave a split empty; draw more")
    if size_px < 16:
        raise click.ClickException(
            f"size_px={size_px} is too small to see anything; give 16 or more"
        )
    arguments = dict(
        drawing=_DRAWING, images=images, size_px=size_px, seed=seed, test_fraction=test_fraction
    )
    if out.exists():
        return _require_same(out, arguments)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch) / "sample"
        (folder / "images").mkdir(parents=True)
        rows = []
        for index in tqdm(range(images), "drawing the sample", unit="image", disable=None):
            picture, labels = compose(seed, index, size_px)
            picture.save(folder / "images" / f"{index:04d}.jpg", quality=90)
            rows.append(labels)
        test = split_test(rows, seed, test_fraction)
        _write_split(folder / "train.json", rows, sorted(set(range(images)) - test))
        _write_split(folder / "test.json", rows, sorted(test))
        (folder / "sample.json").write_text(json.dumps(arguments))
        try:
            folder.rename(out)
        except OSError:  # another process may have drawn the same sample first
            _require_same(out, arguments)


def _write_split(path: Path, rows: Sequence[Sequence[str]], indices: Sequence[int]) -> None:
    samples = [{"image_name": f"{i:04d}.jpg", "image_labels": rows[i]} for i in indices]
    path.write_text(json.dumps({"samples": samples, "labels": LABELS}, indent=1))


def _require_same(out: Path, arguments: dict[str, float]) -> None:
    marker = out / "sample.json"
    if not marker.is_file() or marker.read_bytes() != json.dumps(arguments).encode():
        wanted = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise click.ClickException(
            f"{out} exists but is not the sample of {wanted}: move it away or name another folder"
        )
