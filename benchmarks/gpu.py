"""Claim: on one GPU, the article's recipe is 5 times as fast as the article's own loop, end to end.

    python benchmarks/gpu.py [--data DIR] [--train 5000] [--test 1000] [--epochs 35]
                             [--size_px 256] [--ways graphed]
                             [--parts graphed,loops,launched,whole,scoring,apart,ceiling]

The pictures are synthetic, as many and as large as the article's: their content does not change the
speed. The parts run in this order, the most valuable first, and each prints its result at once:

- graphed: all epochs, with an evaluation on test every 200 steps, recorded in MLflow, with the
  network launched as one CUDA graph.
- loops: one epoch of the article's loop on the same card, and what its 35 epochs would take.
- launched: the same as `graphed`, kernel by kernel.
- whole: `nuswide train` on --data as a user runs it, with report, export and registration.
- scoring: test images scored by torch on the GPU, and by the exported bundle on two CPU cores.
- apart: a step in fp32, TF32, fp16 and bf16, channels last or not; TF32 and bf16 as a CUDA graph,
  too (and with --ways graphed,compiled compiled, which takes minutes).
- ceiling: each convolution of the network alone, forward and backward, in bf16 and channels last;
  the share of a step that they would take is what the loop and the other layers leave to them.

Where the rest of a step goes: `python benchmarks/profile_step.py --size_px 256`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from article_loop import BATCH, Task, article, our_config, ours
from hardware import describe, device
from PIL import Image
from torch import nn

from nuswide.data.dataset import Dataset, open_dataset
from nuswide.data.manifest import Manifest
from nuswide.deployment.export import write_bundle
from nuswide.evaluation.evaluate import Decision, predict, torch_score
from nuswide.models.networks import create_model
from nuswide.models.optim import create_optimizer
from nuswide.tagger import Preprocessing, Tagger

LABELS = 27
PARTS = ("graphed", "loops", "launched", "whole", "scoring", "apart", "ceiling")


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


def recipe(task: Task, epochs: int, *, cuda_graph: bool) -> float:
    """Train by the whole recipe; returns seconds, without those of decoding."""
    config = replace(
        our_config(task), epochs=epochs, test_freq=200, select_on="test", cuda_graph=cuda_graph
    )
    took = ours(task, config)
    speed = epochs * task.steps * BATCH / took["seconds"]
    name = "graphed" if cuda_graph else "launched"
    print(
        f"{name}: {took['seconds']:.1f} s for {epochs} epochs of {task.steps * BATCH} and all "
        f"evaluations, {speed:.0f} images/s, after {took['decoding_s']:.0f} s of decoding",
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


def whole(data: str, size_px: int) -> None:
    """Train as a user does, from the first import to the registered model; prints the end of it."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    options = ["--data", data, "--image_size_px", str(size_px), "--epochs", "20"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "nuswide", "train", *options],
            cwd=folder, capture_output=True, text=True,
            env={**outside, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
        )  # fmt: skip
        seconds = time.perf_counter() - start
    lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines()
    print("\n".join(f"  {line}" for line in lines[-20:]))
    print(f"whole: nuswide train {' '.join(options[2:])}: {seconds:.1f} s in all", flush=True)


def scoring(task: Task, n_on_cpu: int = 256) -> None:
    """Score test by torch in float32 on the GPU, and part of it by the bundle on two CPU cores."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = open_dataset(task.manifest, Preprocessing(task.size_px), folder=folder / "cache")
        test = data.of("test")
        part = Dataset(test.manifest.take(np.arange(n_on_cpu)), test.images, test.rows[:n_on_cpu])
        model = create_model(our_config(task), n_labels=LABELS).to(device())
        score = torch_score(model.to(memory_format=torch.channels_last), device())
        predict(score, part)  # loads the kernels
        start = time.perf_counter()
        predict(score, test)
        on_gpu = len(test) / (time.perf_counter() - start)
        config = our_config(task)
        settings = {
            "labels": list(task.manifest.labels), "image_size_px": task.size_px,
            "data_digest": task.manifest.digest, "config": asdict(config),
        }  # fmt: skip
        decision = Decision(np.full(LABELS, 0.5, np.float32))
        write_bundle(folder / "bundle", model, settings, decision, part.gather(np.arange(8)))
        tagger = Tagger.load(folder / "bundle", threads=2)
        start = time.perf_counter()
        predict(tagger.score, part)
        on_cpu = len(part) / (time.perf_counter() - start)
    print(
        f"scoring: torch on the GPU, fp32, {on_gpu:.0f} images/s ({len(test)} images); the bundle "
        f"on two CPU cores {on_cpu:.1f} images/s ({len(part)}); {on_gpu / on_cpu:.0f} times",
        flush=True,
    )


def apart(task: Task, ways: list[str]) -> None:
    """Time a bare step in each precision and memory format, and the fastest in other ways."""
    torch.backends.cudnn.benchmark = True
    contiguous, last = torch.contiguous_format, torch.channels_last
    names = ("fp32", "tf32", "fp16", "bf16")
    kinds = [(name, layout, "launched") for name in names for layout in (contiguous, last)]
    kinds += [(name, last, way) for way in ways for name in ("tf32", "bf16")]
    first = None
    for name, layout, way in kinds:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
        ms = step_ms(bare_step(task, dtype, layout, way))
        first = first or ms
        what = f"{name} {str(layout).removeprefix('torch.')}, {way}"
        print(f"{what:36s} {ms:8.2f} ms {BATCH / ms * 1000:8.0f} images/s "
              f"{first / ms:5.2f} times the first", flush=True)  # fmt: skip


def bare_step(
    task: Task, dtype: torch.dtype, layout: torch.memory_format, way: str = "launched"
) -> Callable[[], object]:
    """A step of the network alone on one batch. way: launched, graphed or compiled."""
    config = our_config(task)
    model = create_model(config, n_labels=LABELS).to(device()).to(memory_format=layout)
    optimizer = create_optimizer(config, model)
    scaler = torch.amp.GradScaler(device().type, enabled=dtype == torch.float16)
    images = torch.randn(BATCH, 3, task.size_px, task.size_px, device=device())
    images = images.contiguous(memory_format=layout)
    network = torch.compile(model) if way == "compiled" else model
    if way == "graphed":
        with torch.autocast(
            device().type, dtype, enabled=dtype != torch.float32, cache_enabled=False
        ):
            torch.cuda.make_graphed_callables(model, (images,))

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
    whole_ms = step_ms(bare_step(task, dtype, torch.channels_last, "graphed"))
    total_ms, total_flops = 0.0, 0.0
    for layer, shape in convolutions(task):
        layer = layer.to(device(), dtype, memory_format=torch.channels_last)
        images = torch.randn(shape, device=device(), dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        images.requires_grad_(shape[1] > 3)  # nothing wants the gradient of the pictures
        out = layer(images)
        gradient = torch.randn_like(out)
        torch.cuda.make_graphed_callables(layer, (images,))  # else launching is what is timed
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
    parser.add_argument("--data", help="annotations with their pictures, for `whole`")
    parser.add_argument("--ways", default="graphed")
    parser.add_argument("--parts", default=",".join(PARTS))
    given = parser.parse_args()
    parts = given.parts.split(",")
    print(f"{describe()}; {given.size_px} px, batch {BATCH}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        needs_files = {"graphed", "loops", "launched", "scoring"} & set(parts)
        n_train = given.train if needs_files else BATCH
        manifest = draw_pictures(Path(folder), n_train, given.test if needs_files else 1)
        task = Task(manifest, given.size_px, n_train // BATCH)
        own_s = recipe(task, given.epochs, cuda_graph=True) if "graphed" in parts else None
        if "loops" in parts:
            loops(task, given.epochs, own_s)
        if "launched" in parts:
            recipe(task, given.epochs, cuda_graph=False)
        if "whole" in parts and given.data:
            whole(str(Path(given.data).resolve()), given.size_px)
        if "scoring" in parts:
            scoring(task)
    if "apart" in parts:
        apart(task, given.ways.split(","))
    if "ceiling" in parts:
        ceiling(task)


if __name__ == "__main__":
    main()
