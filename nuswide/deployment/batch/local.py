"""The local engine: worker processes that decode and score, one that writes.

Owns the processes and what flows between them: paths there, scores back. A worker has its share of
the cores; while it scores some pictures, a thread of it decodes the next.

    tag_here(parts, model.bundle, listing.file, batch_size=8, workers=2)
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.core.machine import available_cores
from nuswide.deployment.batch.decode import decode_file
from nuswide.deployment.batch.image_list import read_chunks
from nuswide.deployment.batch.parts import Parts, Rejected
from nuswide.tagger import Tagger

_BLOCK = 32  # pictures a worker takes at a time
_WAITING = 4  # blocks for each worker, so that one slow picture leaves no other worker idle
ScoredBlock = tuple[
    NDArray[np.float32], dict[int, str]
]  # scores (N, C); reasons by place in the block


def tag_here(parts: Parts, bundle: Path, pictures: Path, batch_size: int, workers: int) -> None:
    """Tag a listing's pictures that no part has yet, on this machine."""
    total = parts.about["pictures"]
    done = sum(map(parts.size, parts.done))
    with (
        _pool(bundle, batch_size, workers) as pool,
        tqdm(total=total, initial=done, desc="tagging", unit=" pictures", disable=None) as bar,
    ):
        waiting: deque[tuple[int, list[str], Future[ScoredBlock]]] = deque()
        part: list[tuple[list[str], ScoredBlock]] = []
        blocks = _blocks(parts, pictures)
        while True:
            for number, paths in itertools.islice(blocks, _WAITING * workers - len(waiting)):
                waiting.append((number, paths, pool.submit(_score_block, paths)))
            if not waiting:
                return
            number, paths, future = waiting.popleft()
            part.append((paths, future.result()))
            bar.update(len(paths))
            if not waiting or waiting[0][0] != number:
                _write(parts, number, part)
                part = []


def _blocks(parts: Parts, pictures: Path) -> Iterator[tuple[int, list[str]]]:
    for number, paths in read_chunks(pictures, parts.about["part_size"]):
        if number not in parts.done:
            for start in range(0, len(paths), _BLOCK):
                yield number, paths[start : start + _BLOCK]


def _write(parts: Parts, number: int, part: Sequence[tuple[list[str], ScoredBlock]]) -> None:
    tagged: list[str] = []
    rejected: Rejected = []
    for paths, (_, reasons) in part:
        for place, path in enumerate(map(_writable, paths)):
            if place in reasons:
                rejected.append((path, reasons[place]))
            else:
                tagged.append(path)
    parts.write(number, tagged, np.concatenate([scores for _, (scores, _) in part]), rejected)


@contextmanager
def _pool(bundle: Path, batch_size: int, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; the death of one, or of this process, ends them all."""
    threads = max(1, available_cores() // workers)
    # spawn: a fork would copy the threads' locks of whoever called, in whatever state they are.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (bundle, threads, batch_size),
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise click.ClickException(
            "a worker process died, perhaps for want of memory; the same command goes on, with "
            "fewer --workers if need be"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """What a worker process keeps: its network, and a thread that decodes ahead."""

    def __init__(self, bundle: Path, threads: int, batch_size: int) -> None:
        self.tagger = Tagger.load(bundle, threads)
        self.batch_size = batch_size
        self.ahead = ThreadPoolExecutor(1)

    def score(self, paths: Sequence[str]) -> ScoredBlock:
        """Score the pictures that can be read."""
        reasons: dict[int, str] = {}
        scores = [np.empty((0, len(self.tagger.labels)), np.float32)]
        images = self._readable(paths, reasons)
        while batch := list(itertools.islice(images, self.batch_size)):
            scores.append(self.tagger.score(np.stack(batch)))
        return np.concatenate(scores), reasons

    def _readable(
        self, paths: Sequence[str], reasons: dict[int, str]
    ) -> Iterator[NDArray[np.uint8]]:
        for place, image in enumerate(self.ahead.map(self._decode, paths)):
            if isinstance(image, str):
                reasons[place] = image
            else:
                yield image

    def _decode(self, path: str) -> NDArray[np.uint8] | str:
        return decode_file(path, self.tagger.image_size_px)


def _writable(path: str) -> str:
    """A path as text; bytes of a name that are not UTF-8 come out as backslashes."""
    return path.encode("utf-8", "backslashreplace").decode()


_worker: _Worker


def _start_worker(bundle: Path, threads: int, batch_size: int) -> None:
    global _worker
    # Ctrl-C reaches the whole group of processes; the one that writes ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = _Worker(bundle, threads, batch_size)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)


def _score_block(paths: list[str]) -> ScoredBlock:
    return _worker.score(paths)
