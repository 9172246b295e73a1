"""Claim: on one H200, the article's recipe at 256 px takes 90 s; 5 times the article's own loop.

    python benchmarks/gpu.py [--train 5000] [--test 1000] [--epochs 35] [--size_px 256]
                             [--parts recipe,loops,apart,ceiling]

Pictures are drawn, as many and as large as the article's: their content changes no speed. Four
parts, each of which can be run alone:

- recipe: all epochs, with an evaluation on test every 200 steps, recorded in MLflow.
- loops: an epoch of the article's loop on the same card, and what its 35 epochs would take.
- apart: a step in fp32, TF32, fp16 and bf16, channels last or not, compiled or not.
- ceiling: each convolution of the network alone, forward and backward, in bf16 and channels last;
  the share of a step that they would take is what the loop and the other layers leave to them.

What comes next after the convolutions: `python benchmarks/profile_step.py --size_px 256`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from article_loop import BATCH, Task, article, our_config, ours
from hardware import describe, device
from PIL import Image
from torch import nn

from nuswide.manifest import Manifest
from nuswide.models import create_model
from nuswide.optim import create_optimizer

LABELS = 27


def draw_pictures(folder: Path, n_train: int, n_test: int) -> Manifest:
    """Smooth colours in files of the size of NUS-WIDE's, 240 x 180 px."""
    rng = np.random.default_rng(0)
    names = tuple(f"{i:05d}.jpg" for i in range(n_train + n_test))
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((240, 180), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    targets = (rng.random((len(names), LABELS)) < 0.1).astype(np.uint8)
    splits = np.array(["train"] * n_train + ["test"] * n_test)
    return Manifest(folder, names, tuple(map(str, range(LABELS))), targets, splits)


def recipe(task: Task, epochs: int) -> float:
    """Train by the whole recipe; gives seconds, with those of decoding left out."""
    config = replace(our_config(task), epochs=epochs, test_freq=200, select_on="test")
    took = ours(task, config)
    speed = epochs * task.steps * BATCH / took["seconds"]
    print(
        f"recipe: {took['seconds']:.1f} s for {epochs} epochs of {task.steps * BATCH} and all "
        f"evaluations, {speed:.0f} images/s, after {took['decoding_s']:.0f} s of decoding  "
        "(claim for 35 epochs of 5,000: at most 90 s)",
        flush=True,
    )
    return took["seconds"]


def loops(task: Task, epochs: int, own_s: float | None) -> None:
    """Take an epoch by the article's loop, and say what all of them would take."""
    took = article(task)
    training_s = took["seconds"] - took["evaluation_s"]
    n_tests = 1 + epochs * task.steps // 200
    whole_s = epochs * training_s + n_tests * took["evaluation_s"]
    print(f"article's loop: {whole_s:.0f} s, by one epoch of {training_s:.1f} s", flush=True)
    if own_s:
        print(f"article / ours: {whole_s / own_s:.1f}  (claim: at least 5)", flush=True)


def step_ms(step: Callable[[], object], n_steps: int = 30) -> float:
    """Milliseconds of a step, after some that warm up."""
    for timed in (5, n_steps):
        start = time.perf_counter()
        for _ in range(timed):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / n_steps


def apart(task: Task) -> None:
    """Time a bare step in each precision and memory format, compiled and not."""
    torch.backends.cudnn.benchmark = True
    kinds = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16,
             "bf16": torch.bfloat16}  # fmt: skip
    first = None
    for name, dtype in kinds.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            for is_compiled in (False, True):
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
                    name == "tf32"
                )
                ms = step_ms(bare_step(task, dtype, layout, is_compiled))
                first = first or ms
                what = f"{name} {str(layout).removeprefix('torch.')}{', compiled' * is_compiled}"
                print(f"{what:36s} {ms:8.2f} ms {BATCH / ms * 1000:8.0f} images/s "
                      f"{first / ms:5.2f} times the first", flush=True)  # fmt: skip


def bare_step(
    task: Task, dtype: torch.dtype, layout: torch.memory_format, is_compiled: bool
) -> Callable[[], object]:
    """A step of the network alone on one batch."""
    config = our_config(task)
    model = create_model(config, n_labels=LABELS).to(device()).to(memory_format=layout)
    network = torch.compile(model) if is_compiled else model
    optimizer = create_optimizer(config, model)
    scaler = torch.amp.GradScaler(device().type, enabled=dtype == torch.float16)
    images = torch.randn(BATCH, 3, task.size_px, task.size_px, device=device())
    images = images.contiguous(memory_format=layout)

    def step() -> None:
        with torch.autocast(device().type, dtype, enabled=dtype != torch.float32):
            logits = network(images)
        scaler.scale(logits.float().square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def ceiling(task: Task) -> None:
    """Time each convolution alone, and the step that they are part of."""
    dtype = torch.bfloat16
    torch.backends.cudnn.benchmark = True
    whole_ms = step_ms(bare_step(task, dtype, torch.channels_last, is_compiled=False))
    total_ms, total_flops = 0.0, 0.0
    for layer, shape in convolutions(task):
        layer = layer.to(device(), dtype, memory_format=torch.channels_last)
        images = torch.randn(shape, device=device(), dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        images.requires_grad_(shape[1] > 3)  # nothing wants the gradient of the pictures
        out = layer(images)
        gradient = torch.randn_like(out)
        total_ms += step_ms(lambda x=images, g=gradient, c=layer: c(x).backward(g))
        passes = 3 if shape[1] > 3 else 2
        total_flops += 2 * passes * out.numel() * layer.weight[0].numel()
    speed = total_flops / total_ms / 1e9
    print(f"convolutions alone: {total_ms:.2f} ms, {speed:.1f} TFLOP/s; a bare step takes "
          f"{whole_ms:.2f} ms, of which they are {total_ms / whole_ms:.0%}")  # fmt: skip


def convolutions(task: Task) -> list[tuple[nn.Conv2d, torch.Size]]:
    """The network's convolutions, and the shape of what each is given."""
    found: list[tuple[nn.Conv2d, torch.Size]] = []
    model = create_model(our_config(task), n_labels=LABELS)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda c, given, out: found.append((c, given[0].shape)))
    with torch.inference_mode():
        model(torch.zeros(BATCH, 3, task.size_px, task.size_px))
    for layer, _ in found:
        layer._forward_hooks.clear()
    return found


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--size_px", type=int, default=256)
    parser.add_argument("--parts", default="recipe,loops,apart,ceiling")
    given = parser.parse_args()
    parts = given.parts.split(",")
    print(f"{describe()}; {given.size_px} px, batch {BATCH}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        needs_files = {"recipe", "loops"} & set(parts)
        n_train = given.train if needs_files else BATCH
        manifest = draw_pictures(Path(folder), n_train, given.test if needs_files else 1)
        task = Task(manifest, given.size_px, n_train // BATCH)
        own_s = recipe(task, given.epochs) if "recipe" in parts else None
        if "loops" in parts:
            loops(task, given.epochs, own_s)
    if "apart" in parts:
        apart(task)
    if "ceiling" in parts:
        ceiling(task)


if __name__ == "__main__":
    main()
