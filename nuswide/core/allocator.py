"""How this process keeps the memory that it has had.

Owns the settings of the C library's allocator. Never allocates anything itself.

    with freed_memory_kept():
        ...  # many steps that take and free the same large blocks
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 2**20


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Keep freed memory for the next allocation instead of giving it back; whether that is done.

    A network on a CPU frees its activations at each step. glibc gives such large blocks back to the
    system at once and takes them anew at the next step, when the kernel fills every page with
    zeros: a fifth of a step's time. Only glibc has these settings. Afterwards all that is free goes
    back, and large blocks do again: kept, they would be cut up by what comes next.
    """
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    # No blocks of their own, and no trimming.
    kept = [libc.mallopt(_MMAP_MAX, 0), libc.mallopt(_TRIM_THRESHOLD, -1)]
    try:
        yield all(kept)
    finally:
        # What glibc's own adjustment, which settings switch off, comes to with large blocks.
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        libc.mallopt(_MMAP_MAX, 65536)
        libc.malloc_trim(0)
