"""The processes of one training run, and the collectives they use.

Owns every call of torch.distributed. Without torchrun there is one process, and no communication.
Never decides what a process does.

    >>> with process_group(torch.device("cpu")):
    ...     is_main()
    True
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import click
import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_TIMEOUT = timedelta(hours=2)  # one machine may decode its images while another waits


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return this process's number on its machine, which is also its GPU's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that prints and records."""
    return rank() == 0


def say(text: str) -> None:
    """Print a line in the main process only."""
    if is_main():
        click.echo(text)


def launch() -> str | None:
    """Return the ID of torchrun's launch, which a restart keeps; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def is_restarted() -> bool:
    """Whether torchrun started this process to replace one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group of torchrun's processes: NCCL between GPUs, gloo between CPUs.

    Within another such block, this does nothing.
    """
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if is_restarted() and os.environ.get(_OWN_STORE) != "1":
        # The processes would look for each other at the address of those that died.
        raise click.ClickException(
            f"restarted processes cannot find each other; set {_OWN_STORE}=1 before torchrun"
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that its gradients are averaged over the processes."""
    if world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def gradients_shared(network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Average gradients only in the backward pass of a step's last batch."""
    if is_last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[None] = network.no_sync()
    return waiting


def share_buffers(model: nn.Module) -> None:
    """Broadcast the main process's running statistics."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def all_reduce(values: Tensor) -> Tensor:
    """Return the sum over the processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(all_reduce(torch.tensor(int(flag))).item())


def broadcast(value: Any) -> Any:
    """Return the main process's value, a picklable object, in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_batches(own: list[NDArray[np.float32]], n_batches: int) -> list[NDArray[np.float32]]:
    """Return all batches in order, of which process r of W computed r, r + W, r + 2W ..."""
    if world_size() == 1:
        return own
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, own)
    return [parts[i % world_size()][i // world_size()] for i in range(n_batches)]
