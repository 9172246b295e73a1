"""Where each millisecond of a training step goes, as a table and as a figure.

    python benchmarks/profile_step.py [--backbone resnext50_32x4d] [--size_px 64] [--steps 10]
                                      [--field precision=bf16 ...] [--out profile.png]

Takes steps of the loop on pictures of noise under torch's profiler, and sorts the time of its
operators by what they are for: the GPU's own time where there is one, or else the CPU's. The wall
clock of the same steps, without the profiler, stands beside; what it has more is waiting.
"""

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from hardware import describe, device
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

from nuswide.config import load_config
from nuswide.core.allocator import freed_memory_kept
from nuswide.data import transforms
from nuswide.data.label_stats import TrainLabels
from nuswide.models.networks import create_model
from nuswide.reporting.plots.style import BLUE, new_figure, open_axis, to_image
from nuswide.training.step import choose_device, create_state, prepare_epoch, train_step

LABELS = 27
# The first that an operator's name matches; kernels of a GPU have names of their own.
KINDS = {
    "convolution, backward": r"convolution_backward|wgrad|dgrad",
    "convolution, forward": r"conv|implicit_gemm|xmma|cutlass|cudnn.*fprop",
    "batch normalisation": r"batch_norm|bn_fw|bn_bw|batchnorm",
    "optimizer": r"adam|sgd|multi_tensor|foreach|lerp",
    "augmentation": r"grid_sampl|affine_grid",
    "pooling and activation": r"relu|clamp_min|threshold|pool",
    "linear": r"addmm|::mm|gemm|linear",
    "loss": r"binary_cross|sigmoid|log",
    "copies": r"copy|memcpy|contiguous|::to|clone",
    "sums and other arithmetic": r"",
}


def make_step(config_fields: dict[str, str]) -> Callable[[], object]:
    """A function that takes one step on pictures of noise."""
    config = load_config(None, config_fields)
    place = choose_device(config.device)
    rng = np.random.default_rng(0)
    n, side = config.batch_size, config.image_size_px
    labels = (rng.random((n, LABELS)) < 0.1).astype(np.uint8)
    train = TrainLabels(tuple(map(str, range(LABELS))), labels, None)
    model = create_model(config, n_labels=LABELS, train=train)
    state = create_state(config, model, place, steps_per_epoch=156, train=train)
    prepare_epoch(config, state)
    images = torch.from_numpy(rng.integers(0, 256, (n, 3, side, side), dtype=np.uint8)).to(place)
    targets = torch.from_numpy(labels).to(place)
    draws = torch.from_numpy(transforms.draw(config, n_images=n, epoch=0))
    return lambda: train_step(config, state, [(images, targets, None, draws)])


def wall_ms(step: Callable[[], object], steps: int) -> float:
    """Milliseconds of a step by the clock."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / steps


def profiled_ms(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Milliseconds of a step by what they are for, the most first."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        wall_ms(step, steps)
    sums = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        own_us = event.self_cpu_time_total
        if torch.cuda.is_available():  # what an operator launched has events of its own
            is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
            own_us = event.self_device_time_total if is_kernel else 0.0
        kind = next(k for k, pattern in KINDS.items() if re.search(pattern, event.key.lower()))
        sums[kind] += own_us / 1000 / steps
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def draw_bars(parts_ms: dict[str, float], clock_ms: float, title: str) -> Figure:
    """A bar for each kind, with its share of the clock's time."""
    figure = new_figure(8, 4.2)
    axis = figure.subplots()
    names = list(parts_ms)[::-1]
    bars = axis.barh(names, [parts_ms[name] for name in names], color=BLUE)
    texts = [f"{parts_ms[n]:.1f} ms, {parts_ms[n] / clock_ms:.0%}" for n in names]
    axis.bar_label(bars, texts, padding=3, fontsize=8)
    axis.margins(x=0.2)
    axis.set_xlabel(f"ms of a step of {clock_ms:.1f} ms")
    axis.set_title(title, fontsize=10)
    open_axis(axis)
    return figure


def main() -> None:
    """Profile, print the table and draw the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnext50_32x4d")
    parser.add_argument("--size_px", default="64")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--field", action="append", default=[], help="field=value of the config")
    parser.add_argument("--out", type=Path, default=Path("profile.png"))
    given = parser.parse_args()
    fields = {"backbone": given.backbone, "image_size_px": given.size_px}
    step = make_step(fields | dict(pair.split("=", 1) for pair in given.field))
    with freed_memory_kept():  # as fit does
        wall_ms(step, 3)
        clock_ms = wall_ms(step, given.steps)
        parts_ms = profiled_ms(step, given.steps)
    what = f"{given.backbone}, {given.size_px} px {' '.join(given.field)}"
    print(f"{describe()}\n{what}, on the {'GPU' if device().type == 'cuda' else 'CPU'}")
    for name, ms in parts_ms.items():
        print(f"{name:28s} {ms:9.2f} ms {ms / clock_ms:6.1%}")
    print(f"{'by the clock':28s} {clock_ms:9.2f} ms")
    to_image(draw_bars(parts_ms, clock_ms, f"{what}\n{describe()}")).save(given.out)


if __name__ == "__main__":
    main()
