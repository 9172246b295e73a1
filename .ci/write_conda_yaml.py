"""Write conda.yaml from pyproject.toml, with an exact pin for every direct or indirect dependency.

Run it after changing the dependencies in pyproject.toml: `python .ci/write_conda_yaml.py`. It needs
uv. Existing pins that still satisfy pyproject.toml are kept; `--upgrade` renews all.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Generated from pyproject.toml by .ci/write_conda_yaml.py. Do not edit.
name: nuswide
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def main() -> None:
    """Resolve the dependencies and write conda.yaml."""
    conda_yaml = ROOT / "conda.yaml"
    pinned = conda_yaml.read_text(encoding="utf-8") if conda_yaml.exists() else ""
    with tempfile.NamedTemporaryFile("w+", suffix=".txt", encoding="utf-8") as pins:
        pins.write("\n".join(re.findall(r'^      - "(.*)"$', pinned, flags=re.MULTILINE)))
        pins.flush()
        command = [
            *("uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version=3.11"),
            *(
                "--extra=serve",
                "--extra=sweep",
                "--no-annotate",
                "--no-header",
                "--quiet",
                f"--output-file={pins.name}",
            ),
        ]
        subprocess.run([*command, *sys.argv[1:]], cwd=ROOT, check=True)
        lines = Path(pins.name).read_text(encoding="utf-8").splitlines()
    conda_yaml.write_text(
        HEADER + "".join(f'      - "{line}"\n' for line in lines), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
