"""The hardware, versions and commit that a run's numbers depend on.

Owns the tags that record them, and the patch of uncommitted changes. Writes nothing.
"""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

import nuswide

COMMIT_TAG = MLFLOW_GIT_COMMIT
CHANGES_TAG, PATCH_TAG = "git.uncommitted_changes", "git.patch_digest"
_PACKAGE = Path(nuswide.__file__).parent
_LIBRARIES = ("numpy", "pillow", "timm", "torchvision")  # torch and mlflow know their own versions


def environment() -> dict[str, str]:
    """Return this process's environment as tags of a run."""
    import torch  # here, so that what only reads runs does not wait for it

    tags = {
        "hardware.cpu": _cpu_name(),
        "hardware.cores": str(os.cpu_count()),
        "hardware.threads": str(torch.get_num_threads()),
        "software.python": platform.python_version(),
        "software.nuswide": nuswide.__version__,
        "software.torch": torch.__version__,
        "software.mlflow": mlflow.__version__,
        **{f"software.{name}": _installed(name) for name in _LIBRARIES},
    }
    if torch.cuda.is_available():
        tags["hardware.gpu"] = torch.cuda.get_device_name()
    return tags | _source()


def uncommitted_patch() -> str:
    """Return the changes of the package's tracked files since the commit; "" if git has none."""
    options = ("--no-ext-diff", "--no-textconv", "--no-color")
    return (_git("diff", *options, "HEAD", "--", ".") or "") if _is_tracked() else ""


def patch_digest(patch: str) -> str:
    """Return the name of a patch; 16 hex digits."""
    return hashlib.sha256(patch.encode()).hexdigest()[:16]


def _source() -> dict[str, str]:
    """Return the package's commit and whether it is changed; the commit is `none` without git.

    It is always returned, because MLflow records the commit of the repository around the script.
    """
    if not _is_tracked():
        return {COMMIT_TAG: "none"}
    tags = {
        COMMIT_TAG: (_git("rev-parse", "HEAD") or "none").strip(),
        CHANGES_TAG: str(bool(_git("status", "--porcelain", "--", "."))).lower(),
    }
    patch = uncommitted_patch()
    return tags | ({PATCH_TAG: patch_digest(patch)} if patch else {})


def _is_tracked() -> bool:
    """Return whether git tracks the package, which may be installed inside another repository."""
    return _git("ls-files", "--error-unmatch", "config.py") is not None


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str | None:
    """Run git in the package's folder; None where there is no repository."""
    command = ["git", "-C", str(_PACKAGE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace")
