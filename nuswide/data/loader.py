"""The way of uint8 images from the cache to the device.

Owns Resident, which holds a data set's images on the device, and Blocks, which reads ahead. Never
augments.

    feed = open_feed(data, rows, device, "auto")
    for images in feed.batches(batches): ...  # (N, 3, S, S) uint8 on the device
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
_SHARE = 0.5  # of the GPU's free memory that images may take; the network needs the rest
_AHEAD = 3  # batches read ahead
_COPIED = 1024  # images copied to the device at once


class Feed(Protocol):
    """Gives the images of batches of indices into a data set, on the device."""

    def batches(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Give (len(indices), 3, S, S) uint8 for each batch of indices, in their order."""


def open_feed(data: Dataset, rows: Indices, device: torch.device, kind: str) -> Feed:
    """Choose the way for the images at `rows` of a data set. kind: auto, resident or blocks."""
    if kind == "auto":
        kind = "resident" if _fits(data, rows, device) else "blocks"
    return Resident(data, rows, device) if kind == "resident" else Blocks(data, device)


def _fits(data: Dataset, rows: Indices, device: torch.device) -> bool:
    if device.type == "cpu":
        return True  # nothing is copied: the kernel reads pages of the cache as they are needed
    if device.type != "cuda":
        return False  # mps shares the machine's memory, so that little is gained by copying all
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return len(rows) * int(np.prod(data.images.shape[1:])) <= _SHARE * free_bytes


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Put an array on the device without waiting for it."""
    return pin_memory(array, device).to(device, non_blocking=True)


def pin_memory(array: NDArray[Any], device: torch.device) -> Tensor:
    """Put an array where parts of it can be copied to the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


class Resident:
    """All images on the device, copied once; on a CPU they stay in the cache's file."""

    def __init__(self, data: Dataset, rows: Indices, device: torch.device) -> None:
        self.data, self.device = data, device
        if device.type == "cpu":
            return
        self.place = torch.zeros(len(data), dtype=torch.int64, device=device)
        self.place[torch.from_numpy(rows)] = torch.arange(len(rows), device=device)
        shape = (len(rows), *data.images.shape[1:])
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        for start in range(0, len(rows), _COPIED):
            part = rows[start : start + _COPIED]
            self.images[start : start + len(part)] = torch.from_numpy(data.gather(part)).to(device)

    def batches(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Give each batch's images."""
        for batch in batches:
            if self.device.type == "cpu":
                yield torch.from_numpy(self.data.gather(batch))
            else:
                yield self.images[self.place[to_device(batch, self.device)]]


class Blocks:
    """Images read from the cache by a thread, a few batches ahead, through pinned memory."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.data, self.device = data, device

    def batches(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Give each batch's images."""
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(1) as reader:
            try:
                for batch in batches:
                    waiting.append(reader.submit(self._read, batch))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result().to(self.device, non_blocking=True)
                while waiting:
                    yield waiting.popleft().result().to(self.device, non_blocking=True)
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, batch: Indices) -> Tensor:
        images = torch.from_numpy(self.data.gather(batch))
        return images.pin_memory() if self.device.type == "cuda" else images
