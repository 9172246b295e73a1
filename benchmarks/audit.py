"""Claim: all 209,347 labelled photos of NUS-WIDE are audited in 30 s, without their pictures.

    NUSWIDE_REAL_DATA=DIR python benchmarks/audit.py

DIR/nuswide/all_labels.tsv.gz has the label sets by line. Counts the answers, the figures, the
tables and the page.
"""

import csv
import gzip
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from nuswide.data.importers.lists import LABELS_81
from nuswide.data.manifest import Manifest
from nuswide.reporting.audit import findings, make_audit, write_audit


def read_all(source: Path) -> Manifest:
    """The labelled photos; their names are made up."""
    with gzip.open(source, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    targets = np.zeros((len(rows), 81), dtype=np.uint8)
    column = {label: c for c, label in enumerate(LABELS_81)}
    for target, (_, _, present) in zip(targets, rows, strict=True):
        target[[column[label] for label in present.split()]] = 1
    names = tuple(f"{line}.jpg" for line, _, _ in rows)
    return Manifest(Path("."), names, LABELS_81, targets, np.array([row[1] for row in rows]))


def main() -> None:
    """Audit, and print seconds and the most memory."""
    manifest = read_all(Path(os.environ["NUSWIDE_REAL_DATA"]) / "nuswide/all_labels.tsv.gz")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        audit = make_audit(manifest)
        write_audit(audit, Path(folder))
        seconds = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{len(manifest):,} images, {len(manifest.labels)} labels")
    print("\n".join(findings(audit)))
    print(f"seconds  {seconds:6.1f}  (claim: at most 30)")
    print(f"peak GB  {peak_gb:6.2f}")


if __name__ == "__main__":
    main()
