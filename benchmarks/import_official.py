"""Claim: NUS-WIDE's whole published annotations are imported in 15 s and 1.5 GB, on one core.

    NUSWIDE_REAL_DATA=DIR python benchmarks/import_official.py

DIR/nuswide/all_labels.tsv.gz has the label sets by line. Writes all 269,648 lines in the published
layout, and imports them in a process of its own that may use one core.
"""

import csv
import gzip
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nuswide.data.importers import read_annotations
from nuswide.data.importers.lists import LABELS_81

N_IMAGES = 269_648


def write_official(folder: Path, source: Path) -> None:
    """Write lists and labels in the published layout; the names are made up."""
    targets = np.zeros((N_IMAGES, 81), dtype=np.uint8)
    column = {label: c for c, label in enumerate(LABELS_81)}
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file:
        for line, _, present in list(csv.reader(file, delimiter="\t"))[1:]:
            targets[int(line) - 1, [column[label] for label in present.split()]] = 1
    numbers = np.arange(1, N_IMAGES + 1)
    is_test = np.isin(numbers % 5, (0, 2))
    groups = {"": np.ones(N_IMAGES, bool), "_Train": ~is_test, "_Test": is_test}
    for path in ("ImageList", "Groundtruth/AllLabels", "Groundtruth/TrainTestLabels"):
        (folder / path).mkdir(parents=True)
    (folder / "Concepts81.txt").write_text("\n".join(LABELS_81))
    for suffix, chosen in groups.items():
        names = "".join(f"folder{n % 700}\\{n:04d}_{n}.jpg\r\n" for n in numbers[chosen])
        (folder / f"ImageList/{suffix.strip('_')}Imagelist.txt").write_text(names, newline="")
        kind = "TrainTestLabels" if suffix else "AllLabels"
        for c, label in enumerate(LABELS_81):
            text = b"\n".join(b"01"[v : v + 1] for v in targets[chosen, c])
            (folder / f"Groundtruth/{kind}/Labels_{label}{suffix}.txt").write_bytes(text)


def import_alone(folder: Path) -> None:
    """Import on one core, and print seconds and the most memory."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    start = time.perf_counter()
    manifest = read_annotations(folder)
    seconds = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"{len(manifest):,} images, {len(manifest.labels)} labels, {manifest.targets.sum():,} set"
    )
    print(f"seconds  {seconds:6.1f}  (claim: at most 15)")
    print(f"peak GB  {peak_gb:6.2f}  (claim: at most 1.5)")


def main() -> None:
    """Write the layout, and import it in a child."""
    source = Path(os.environ["NUSWIDE_REAL_DATA"]) / "nuswide/all_labels.tsv.gz"
    with tempfile.TemporaryDirectory() as folder:
        write_official(Path(folder), source)
        subprocess.run([sys.executable, __file__, folder], check=True)


if __name__ == "__main__":
    import_alone(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
