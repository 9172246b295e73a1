"""The local engine: worker processes decode and score, the main process writes.

Workers get paths and return scores. The cores are divided among them. While a worker scores a
batch, a thread of it decodes the next one.
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
from nuswide.deployment.batch.image_list import read_chunks, writable
from nuswide.deployment.batch.parts import Rejected, TagParts
from nuswide.tagger import Tagger

_BLOCK = 32  # images that a worker gets at a time
_WAITING = 4  # blocks queued for each worker, so that a slow image leaves no other worker idle
ScoredBlock = tuple[
    NDArray[np.float32], dict[int, str]
]  # scores (N, C); reasons by place in the block


def tag_locally(
    parts: TagParts, bundle: Path, image_list: Path, batch_size: int, workers: int
) -> None:
    """Tag the listed images that no part contains yet."""
    total = parts.about["pictures"]
    done = sum(map(parts.size, parts.done))
    with (
        _pool(bundle, batch_size, workers) as pool,
        tqdm(total=total, initial=done, desc="tagging", unit=" images", disable=None) as bar,
    ):
        waiting: deque[tuple[int, list[str], Future[ScoredBlock]]] = deque()
        part: list[tuple[list[str], ScoredBlock]] = []
        blocks = _blocks(parts, image_list)
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


def _blocks(parts: TagParts, image_list: Path) -> Iterator[tuple[int, list[str]]]:
    for number, paths in read_chunks(image_list, parts.about["part_size"]):
        if number not in parts.done:
            for start in range(0, len(paths), _BLOCK):
                yield number, paths[start : start + _BLOCK]


def _write(parts: TagParts, number: int, part: Sequence[tuple[list[str], ScoredBlock]]) -> None:
    tagged: list[str] = []
    rejected: Rejected = []
    for paths, (_, reasons) in part:
        for place, path in enumerate(map(writable, paths)):
            if place in reasons:
                rejected.append((path, reasons[place]))
            else:
                tagged.append(path)
    parts.write(number, tagged, np.concatenate([scores for _, (scores, _) in part]), rejected)


@contextmanager
def _pool(bundle: Path, batch_size: int, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of worker processes. If one of them or this process dies, all end."""
    threads = max(1, available_cores() // workers)
    # spawn: a fork would copy locks that threads of the caller may hold.
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
            "a worker process died, possibly out of memory; repeat the command to resume, with "
            "fewer --workers if necessary"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """The state of a worker process: its network, and a thread that decodes ahead."""

    def __init__(self, bundle: Path, threads: int, batch_size: int) -> None:
        self.tagger = Tagger.load(bundle, threads)
        self.batch_size = batch_size
        self.ahead = ThreadPoolExecutor(1)

    def score(self, paths: Sequence[str]) -> ScoredBlock:
        """Score the images that can be decoded."""
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
        return decode_file(path, self.tagger.preprocessing)


_worker: _Worker


def _start_worker(bundle: Path, threads: int, batch_size: int) -> None:
    global _worker
    # Ctrl-C reaches the whole process group; the main process ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker = _Worker(bundle, threads, batch_size)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    wait([parent.sentinel])
    os._exit(1)


def _score_block(paths: list[str]) -> ScoredBlock:
    return _worker.score(paths)
