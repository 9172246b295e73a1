"""Claim: the bundle scores a picture 1.6 times as fast as eager torch, a batch of 32 2 times.

    python benchmarks/bundle.py [--seconds 12] [--backbone resnext50_32x4d] [--size_px 256]

The first part is missed on the processors measured so far: 1.50 times.

Random weights, all cores. Eager torch, in eval and inference mode, runs in whichever memory format
is faster; the bundle as the tagger opens it; and its int8 variant, calibrated on noise, which tells
its speed and not its figures. The three take turns; a ratio is the median of the turns', with the
range that half of them lie in. Also says what share of a request reading a photo is.
"""

import argparse
import copy
import functools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import describe
from serve_setup import photo, write_random_bundle

from nuswide.deployment.quantize import quantize_network
from nuswide.models.networks import Scorer, TaggerNet
from nuswide.tagger import Tagger, decode_image

TURNS = 8
CLAIMS = {1: 1.6, 32: 2.0}  # by batch size
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
Calls = dict[str, Callable[[], object]]


def by_turn(calls: Calls, seconds: float) -> dict[str, list[float]]:
    """Each call's median milliseconds in every turn, tried for some seconds in all.

    They take turns of several calls, so that all meet the same machine; with a pause and a first
    call that does not count, as each engine's threads spin for a while, and would slow the next.
    """
    turns: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            time.sleep(0.3)
            call()
            times: list[float] = []
            end = time.perf_counter() + seconds / TURNS
            while (start := time.perf_counter()) < end or not times:
                call()
                times.append(1e3 * (time.perf_counter() - start))
            turns[name].append(statistics.median(times))
    return turns


def medians(turns: dict[str, list[float]]) -> dict[str, float]:
    """The median of each call's turns."""
    return {name: statistics.median(each) for name, each in turns.items()}


def eager(model: TaggerNet, layout: torch.memory_format, images: np.ndarray) -> Callable[[], Any]:
    """A call that scores by torch, its network in a memory format."""
    scorer = Scorer(copy.deepcopy(model).to(memory_format=layout)).eval()

    def score() -> np.ndarray:
        with torch.inference_mode():
            return scorer(torch.from_numpy(images)).numpy()

    return score


def compare(
    model: TaggerNet, taggers: dict[str, Tagger], images: np.ndarray, seconds: float
) -> None:
    """Print what a batch takes by torch, by the bundle and by its int8 variant."""
    eagers: Calls = {form: eager(model, layout, images) for form, layout in FORMATS.items()}
    formats = medians(by_turn(eagers, seconds / 2))
    best = min(formats, key=lambda form: formats[form])
    calls: Calls = {"eager": eagers[best]}
    calls |= {name: functools.partial(t.score, images) for name, t in taggers.items()}
    turns = by_turn(calls, seconds)
    times = medians(turns)
    shown = ", ".join(f"{form} {ms:.1f}" for form, ms in formats.items())
    print(f"batch {len(images):2d}: eager torch {times['eager']:.1f} ms ({best}; {shown})")
    for name in taggers:
        claim = CLAIMS[len(images)] if name == "bundle" else 2.0
        ratios = np.divide(turns["eager"], turns[name])
        low, ratio, high = np.percentile(ratios, [25, 50, 75])
        verdict = "held" if ratio >= claim else "MISSED"
        print(
            f"  {name:6s} {times[name]:7.1f} ms, {ratio:.2f} times, {low:.2f} to {high:.2f} "
            f"(claim {claim}: {verdict})"
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=12, help="for each engine")
    parser.add_argument("--backbone", default="resnext50_32x4d")
    parser.add_argument("--size_px", type=int, default=256)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (3, options.size_px, options.size_px)
    print(f"{describe()}; {options.backbone} at {options.size_px} px")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, bundle = write_random_bundle(folder, options.backbone, options.size_px)
        small = Path(shutil.copytree(bundle, folder / "int8"))
        noise = rng.integers(0, 256, (8, *shape), dtype=np.uint8)
        quantize_network(bundle / "model.onnx", small / "model.onnx", noise)
        for size in CLAIMS:
            images = rng.integers(0, 256, (size, *shape), dtype=np.uint8)
            taggers = {"bundle": Tagger.load(bundle), "int8": Tagger.load(small)}
            compare(model, taggers, images, options.seconds)
        sizes = [(one / "model.onnx").stat().st_size / 1e6 for one in (bundle, small)]
        print(f"the network's file: {sizes[0]:.0f} MB, int8 {sizes[1]:.0f} MB")
        (folder / "photo.jpg").write_bytes(photo())
        image = decode_image(folder / "photo.jpg", options.size_px)[None]
        tagger = Tagger.load(bundle)
        parts: Calls = {
            "read": lambda: decode_image(folder / "photo.jpg", options.size_px),
            "score": lambda: tagger.score(image),
        }
        times = medians(by_turn(parts, options.seconds))
        share = times["read"] / sum(times.values())
        print(f"reading a photo: {times['read']:.1f} ms, {share:.1%} of the two (claim: a tenth)")


if __name__ == "__main__":
    main()
