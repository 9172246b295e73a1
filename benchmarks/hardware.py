"""One line on what a benchmark ran on."""

import platform
from pathlib import Path

import torch

from nuswide.core.machine import available_cores


def describe() -> str:
    """Name the processor, the GPU if there is one, and the versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = available_cores()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cpu}, {cores} cores{gpu}, {versions}"


def device() -> torch.device:
    """The GPU if there is one, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
