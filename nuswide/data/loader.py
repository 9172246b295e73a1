"""Loaders, which bring uint8 images, or their feature maps, from the cache to the device.

Owns ResidentLoader, which holds a data set's images on the device, and BlockLoader, which reads
batches ahead. Never augments.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuswide.data.dataset import Dataset

Indices = NDArray[np.int64]
_FREE_SHARE = 0.5  # of the GPU's free memory that images may take; the network needs the rest
_PREFETCHED = 3  # batches
_COPIED = 1024  # images copied to the device at once


class Loader(Protocol):
    """Yields the inputs of batches of a data set, on the device."""

    def batches(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Yield (len(indices), ...) for each batch of indices, in order; see Dataset.inputs."""


def create_loader(data: Dataset, rows: Indices, device: torch.device, kind: str) -> Loader:
    """Create the loader for the images at `rows` of a data set. kind: auto, resident or blocks."""
    if kind == "auto":
        kind = "resident" if _fits(data, rows, device) else "blocks"
    return ResidentLoader(data, rows, device) if kind == "resident" else BlockLoader(data, device)


def _fits(data: Dataset, rows: Indices, device: torch.device) -> bool:
    if device.type == "cpu":
        return True  # nothing is copied: the kernel reads pages of the cache as they are needed
    if device.type != "cuda":
        return False  # mps shares the machine's memory, so that little is gained by copying all
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return len(rows) * data.inputs[:1].nbytes <= _FREE_SHARE * free_bytes


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to the device asynchronously."""
    return pin_memory(array, device).to(device, non_blocking=True)


def pin_memory(array: NDArray[Any], device: torch.device) -> Tensor:
    """Pin the array so that slices can be copied to the GPU asynchronously."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


class ResidentLoader:
    """Holds all images on the device, copied once; on a CPU they stay in the cache's file."""

    def __init__(self, data: Dataset, rows: Indices, device: torch.device) -> None:
        self.data, self.device = data, device
        if device.type == "cpu":
            return
        self.position = torch.zeros(len(data), dtype=torch.int64, device=device)
        self.position[torch.from_numpy(rows)] = torch.arange(len(rows), device=device)
        example = torch.from_numpy(data.gather_inputs(rows[:1]))
        self.inputs = example.new_empty((len(rows), *example.shape[1:]), device=device)
        for start in range(0, len(rows), _COPIED):
            block = rows[start : start + _COPIED]
            copied = torch.from_numpy(data.gather_inputs(block)).to(device)
            self.inputs[start : start + len(block)] = copied

    def batches(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Yield the inputs of each batch."""
        for batch in batches:
            if self.device.type == "cpu":
                yield torch.from_numpy(self.data.gather_inputs(batch))
            else:
                yield self.inputs[self.position[to_device(batch, self.device)]]


class BlockLoader:
    """Reads images from the cache in a thread, a few batches ahead, through pinned memory."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.data, self.device = data, device

    def batches(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Yield the inputs of each batch."""
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            try:
                for batch in batches:
                    waiting.append(reader.submit(self._read, batch))
                    if len(waiting) > _PREFETCHED:
                        yield waiting.popleft().result().to(self.device, non_blocking=True)
                while waiting:
                    yield waiting.popleft().result().to(self.device, non_blocking=True)
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, batch: Indices) -> Tensor:
        return pin_memory(self.data.gather_inputs(batch), self.device)
