"""The result of a tagging: a folder of Parquet parts.

The folder contains part-00000.parquet ..., _tagging.json, _rejected.csv and, if files were skipped,
_skipped.csv; readers of Parquet ignore names that begin with _. Parts are written atomically. A
part's metadata describes the tagging that it belongs to and lists its rejected images, so that a
kill cannot separate them.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nuswide.core import files
from nuswide.core.files import atomic_write, temporary_path
from nuswide.deployment.batch.image_list import ImageList
from nuswide.deployment.batch.request import ResolvedModel, TagOptions

ABOUT, REJECTED, LISTED = "_tagging.json", "_rejected.csv", "_pictures.list"
SKIPPED = "_skipped.csv"
_LOCK = "_lock"
_PREFIX = "nuswide."
Rejected = list[tuple[str, str]]


def describe_job(
    model: ResolvedModel, source: str, listing: ImageList, options: TagOptions
) -> dict[str, Any]:
    """Describe a tagging. Parts of equal descriptions belong to the same result."""
    return {
        "labels": list(model.labels),
        "thresholds": [float(t) for t in model.thresholds],
        "model": model.uri,
        "model_version": model.version,
        "model_digest": model.digest,
        "source": source,
        "data_digest": listing.data_digest,
        "paths_digest": listing.digest,
        "pictures": listing.count,
        "top_k": options.top_k,
        "all_scores": options.all_scores,
        "part_size": options.part_size,
    }


def select(
    scores: NDArray[np.float32], labels: Sequence[str], thresholds: NDArray[np.float32], top_k: int
) -> tuple[pa.Array, pa.Array]:
    """Select the labels whose scores (N, C) reach their thresholds (C,), best first.

    Returns the lists of labels and of their scores.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    best_first = np.take_along_axis(scores, order, axis=1)
    kept = best_first >= thresholds[order]
    if top_k:
        kept &= kept.cumsum(axis=1) <= top_k
    offsets = pa.array(np.concatenate([[0], kept.sum(axis=1).cumsum()]).astype(np.int32))
    names = pa.array(labels, pa.string()).take(pa.array(order[kept]))
    return (
        pa.ListArray.from_arrays(offsets, names),
        pa.ListArray.from_arrays(offsets, pa.array(best_first[kept], pa.float32())),
    )


@dataclass
class TagParts:
    """The parts of one tagging in a folder. about: the description by describe_job."""

    folder: Path
    about: dict[str, Any]
    done: set[int] = field(default_factory=set)

    def path(self, number: int) -> Path:
        """Return the path of a part."""
        return self.folder / f"part-{number:05d}.parquet"

    def size(self, number: int) -> int:
        """Return the number of images of a part, including rejected ones."""
        size: int = self.about["part_size"]
        return min(size, int(self.about["pictures"]) - number * size)

    def begin(self) -> None:
        """Start a tagging, or find the parts that an earlier process has written.

        Raises click.ClickException if they belong to another tagging or are damaged.
        """
        about = self.folder / ABOUT
        if about.exists():
            try:
                found = dict(json.loads(about.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise click.ClickException(
                    f"{about} is damaged ({error}); remove it and repeat the command"
                ) from error
            self._require_same(found, about)
        else:
            with atomic_write(about) as file:
                json.dump(self.about, file, indent=1, ensure_ascii=False)
        for path in sorted(self.folder.glob("part-*.parquet")):
            self.done.add(self._check(path))

    def _require_same(self, found: dict[str, Any], path: Path) -> None:
        differing = [key for key in self.about if found.get(key) != self.about[key]]
        if differing:
            key = min(differing, key=list(self.about).index)
            texts = [_brief(about.get(key)) for about in (found, self.about)]
            raise click.ClickException(
                f"{path} belongs to another tagging: its {key} is {texts[0]}, not {texts[1]}; "
                "repeat the command it was started with, or choose another --out"
            )

    def _check(self, path: Path) -> int:
        """Check that a part is intact and belongs to this tagging; return its number."""
        try:
            metadata = pq.read_metadata(path)
            found = read_about(metadata.metadata)
            number = int(path.stem.removeprefix("part-"))
            size = metadata.num_rows + len(found.pop("rejected"))
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise click.ClickException(
                f"{path} is damaged ({reason}); remove it and repeat the command"
            ) from error
        self._require_same(found, path)
        if self.path(number) != path or size != self.size(number):
            raise click.ClickException(
                f"{path} has {size} images, not as many as expected; remove it and repeat the "
                "command"
            )
        return number

    def write(
        self, number: int, paths: Sequence[str], scores: NDArray[np.float32], rejected: Rejected
    ) -> None:
        """Write a part: paths of the tagged images, their scores (N, C), and rejected images."""
        thresholds = np.asarray(self.about["thresholds"], np.float32)
        names, best = select(scores, self.about["labels"], thresholds, self.about["top_k"])
        columns = {"path": pa.array(paths, pa.string()), "labels": names, "scores": best}
        if self.about["all_scores"]:
            flat = pa.array(scores.ravel(), pa.float32())
            columns["all_scores"] = pa.FixedSizeListArray.from_arrays(flat, scores.shape[1])
        metadata = {f"{_PREFIX}{k}": json.dumps(v, ensure_ascii=False) for k, v in
                    {**self.about, "rejected": rejected}.items()}  # fmt: skip
        table = pa.table(columns).replace_schema_metadata(metadata)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        with atomic_write(self.path(number), "wb") as file:
            file.write(sink.getvalue())
        self.done.add(number)

    def finish(self) -> int:
        """Write the rejected images of all parts into one file; return their number."""
        with atomic_write(self.folder / REJECTED) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "reason"])
            count = 0
            for number in sorted(self.done):
                rejected = read_about(pq.read_metadata(self.path(number)).metadata)["rejected"]
                writer.writerows(rejected)
                count += len(rejected)
        (self.folder / LISTED).unlink(missing_ok=True)
        return count


def read_about(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """Return the description of the tagging in the metadata of a part."""
    texts = {key.decode(): value for key, value in (metadata or {}).items()}
    return {
        key.removeprefix(_PREFIX): json.loads(value)
        for key, value in texts.items()
        if key.startswith(_PREFIX)
    }


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock a result against other processes. The lock is released when the process ends.

    Raises click.ClickException if the folder contains other files or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock, busy = folder / _LOCK, f"another process is tagging into {folder}"
        with files.exclusive_lock(lock, busy=busy):
            try:
                _require_own(folder)
                yield
            finally:
                with suppress(OSError):  # it may stay: readers of Parquet ignore it
                    lock.unlink()
    except OSError as error:
        raise click.ClickException(f"{error.filename or folder}: {error.strerror}") from error


def _require_own(folder: Path) -> None:
    """Raise click.ClickException if the folder contains files that are not of a tagging."""
    own = {LISTED, SKIPPED, _LOCK, temporary_path(folder / ABOUT).name}
    others = {path.name for path in folder.iterdir()} - own
    if others and ABOUT not in others:
        raise click.ClickException(
            f"{folder} contains other files ({min(others)}); choose another --out"
        )


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
