"""The processes that train together: how many, which one this is, and what they tell each other.

Owns every call of torch.distributed. In a process that torchrun did not start, there is one, and
nothing is told. Never decides what a process does.

    with process_group(device):
        if is_main(): ...
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
_PATIENCE = timedelta(hours=2)  # one machine may decode its pictures while another waits


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if is_main():
        click.echo(text)


def launch() -> str | None:
    """The name of torchrun's launch; None without it. A restarted process has the same one."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def is_restarted() -> bool:
    """Whether torchrun has started this process in place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; the network's gradients go through NCCL on GPUs."""
    if world_size() == 1:
        yield
        return
    if is_restarted() and os.environ.get(_OWN_STORE) != "1":
        # The processes would look for each other where those that died have been.
        raise click.ClickException(
            f"restarted processes can't find each other; set {_OWN_STORE}=1 before torchrun"
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Make a network average its gradients over the processes."""
    if world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def gradients_shared(network: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Average gradients in the backward pass of a step's last batch alone."""
    if is_last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[None] = network.no_sync()
    return waiting


def share_buffers(model: nn.Module) -> None:
    """Give all processes the main one's running statistics."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def all_reduce(values: Tensor) -> Tensor:
    """The sum over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(all_reduce(torch.tensor(int(flag))).item())


def broadcast(value: Any) -> Any:
    """Give every process the main one's value, a plain object."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_batches(own: list[NDArray[np.float32]], n_batches: int) -> list[NDArray[np.float32]]:
    """Put together batches of which process r computed r, r + W, r + 2W ..."""
    if world_size() == 1:
        return own
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, own)
    return [parts[i % world_size()][i // world_size()] for i in range(n_batches)]
