"""The cache of decoded images: a data set's images as uint8 pixels in one file, decoded once.

Owns the choice of a cache for a manifest, and its lock. Knows nothing of labels.

    >>> cache = open_cache(manifest, Preprocessing(32), folder=folder)
    >>> cache.images[[3, 1]].shape
    (2, 3, 32, 32)
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from nuswide.core.files import exclusive_lock
from nuswide.core.wording import counted
from nuswide.data.cache_build import REJECTED, Cache, CacheBuilder
from nuswide.data.manifest import Manifest
from nuswide.tagger import DECODER_VERSION, Preprocessing

_LOCK = "lock"


def open_cache(
    manifest: Manifest, preprocessing: Preprocessing, *, folder: Path, skip_rejected: bool = False
) -> Cache:
    """Open the cache of a manifest's images; decode on all cores what is missing.

    If two processes open it at once, one decodes and the other waits. Raises click.ClickException
    if the disk is too small, or, unless `skip_rejected`, if files cannot be decoded.
    """
    path = folder / cache_key(manifest, preprocessing)
    with cache_folder(path, "decoded images"):
        cache = CacheBuilder(manifest, preprocessing, path).build()
    if cache.rejected and not skip_rejected:
        shown = "; ".join(f"{manifest.names[row]}: {why}" for row, why in cache.rejected[:3])
        raise click.ClickException(
            f"{len(cache.rejected)} of {counted(len(manifest), 'image')} cannot be decoded: {shown}"
            f"{' ...' if len(cache.rejected) > 3 else ''}; {path / REJECTED} lists them; repair "
            "them, or give skip_rejected=true to leave them out"
        )
    return cache


def cache_key(manifest: Manifest, preprocessing: Preprocessing) -> str:
    """Return a cache's name, from the folder and order of the images, and what decides pixels.

    Labels and splits do not matter, so that a changed label decodes nothing again.
    """
    files = "\0".join([os.path.realpath(manifest.root), *manifest.names])
    digest = hashlib.sha256(files.encode(errors="surrogateescape")).hexdigest()[:16]
    size_px, fit, interpolation, fill = preprocessing
    color = [bytes(fill).hex()] if fit == "pad" else []
    parts = [digest, f"{size_px}px", fit, *color, interpolation, f"v{DECODER_VERSION}"]
    return "-".join(parts)


@contextmanager
def cache_folder(path: Path, content: str) -> Iterator[None]:
    """Make the folder of a cache and hold its lock; wait while another process holds it.

    Raises click.ClickException, which names the content, for an OSError inside.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        busy = f"another process is writing into {path}; waiting for it"
        with exclusive_lock(path / _LOCK, busy=busy, wait=True):
            yield
    except OSError as error:
        folder = path.parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"no space left for {content} in {folder}; free some, and start again"
        else:
            reason = f"cannot write {content} into {folder}: {error.strerror}; give cache=DIR"
        raise click.ClickException(reason) from error
