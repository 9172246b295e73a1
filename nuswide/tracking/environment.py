"""The hardware, versions and commit that a run's numbers depend on.

Owns the tags that record them. Writes nothing.

    run.set_tags(environment())
"""

import os
import platform
import subprocess
from pathlib import Path

import mlflow


def environment() -> dict[str, str]:
    """Return this process's environment as tags of a run."""
    import torch  # here, so that what only reads runs does not wait for it

    tags = {
        "hardware.cpu": _cpu_name(),
        "hardware.cores": str(os.cpu_count()),
        "hardware.threads": str(torch.get_num_threads()),
        "software.python": platform.python_version(),
        "software.torch": torch.__version__,
        "software.mlflow": mlflow.__version__,
    }
    if torch.cuda.is_available():
        tags["hardware.gpu"] = torch.cuda.get_device_name()
    if (changes := _git("status", "--porcelain")) is not None:
        tags["git.uncommitted_changes"] = str(bool(changes)).lower()
        tags["mlflow.source.git.commit"] = _git("rev-parse", "HEAD") or "none"
    return tags


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str | None:
    """Run git on this package's checkout; None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
