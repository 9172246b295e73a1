"""Settings that make a process keep freed memory.

Owns the settings of the C library's allocator. Allocates nothing itself.
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
    """Keep freed memory for later allocations; yields whether the C library supports this.

    A network on a CPU frees its activations at each step. glibc returns such large blocks to the
    system at once and requests them again at the next step, when the kernel fills every page with
    zeros: a fifth of a step's time. Only glibc has these settings. At the end, all free memory is
    returned to the system, as large blocks are from then on: kept, they would be fragmented.
    """
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    # No separate mappings for large blocks, and no trimming.
    kept = [libc.mallopt(_MMAP_MAX, 0), libc.mallopt(_TRIM_THRESHOLD, -1)]
    try:
        yield all(kept)
    finally:
        # The values that glibc's own adjustment, now switched off, reaches with large blocks.
        libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
        libc.mallopt(_MMAP_MAX, 65536)
        libc.malloc_trim(0)
