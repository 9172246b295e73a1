"""Claim: what serves the model is installed in a fraction of what torch takes.

    python benchmarks/installed_size.py [MODEL_FOLDER]

Installs the model's pinned requirements (those of a logged model's folder, or those that one logged
now would have) into a fresh virtual environment, and into another one torch and torchvision beside
them (the default wheels; an index of CPU wheels can be given as UV_INDEX). Shows
the megabytes of each. An image has the system's and Python's own files besides.
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

LARGEST = 6


def requirements(arguments: list[str]) -> list[str]:
    """The pins of a logged model, or of one that would be logged now."""
    if arguments:
        return (Path(arguments[0]) / "requirements.txt").read_text().split()
    from nuswide.deployment.export import _REQUIREMENTS

    return [f"{name}=={version(name)}" for name in _REQUIREMENTS]


def installed_mb(pins: list[str]) -> tuple[float, dict[str, float]]:
    """Install into a fresh environment; gives its megabytes, and those of its largest packages."""
    with tempfile.TemporaryDirectory() as folder:
        uv = [sys.executable, "-m", "uv"]
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        subprocess.run([*uv, "venv", "--quiet", "--python", python, f"{folder}/env"], check=True)
        command = [*uv, "pip", "install", "--quiet", "--python", f"{folder}/env/bin/python", *pins]
        subprocess.run(command, check=True)
        (packages,) = Path(folder).glob("env/lib/python*/site-packages")
        sizes = {entry.name: size_mb(entry) for entry in packages.iterdir()}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:LARGEST]
        return sum(sizes.values()), {name: sizes[name] for name in largest}


def size_mb(path: Path) -> float:
    """The megabytes of a file or a folder."""
    files = [path] if path.is_file() else [Path(f, n) for f, _, ns in os.walk(path) for n in ns]
    return sum(file.lstat().st_size for file in files) / 1e6


def main() -> None:
    """Install and compare."""
    pins = requirements(sys.argv[1:])
    torch = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    total: dict[str, float] = {}
    for name, chosen in {"model": pins, "model and torch": [*pins, *torch]}.items():
        total[name], largest = installed_mb(chosen)
        told = ", ".join(f"{package} {mb:.0f}" for package, mb in largest.items())
        print(f"{name}: {total[name]:.0f} MB ({' '.join(chosen)}); {told}", flush=True)
    ratio = total["model and torch"] / total["model"]
    print(f"with torch {ratio:.1f} times as much (claim: at least 5); {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
