"""How this process keeps the memory that it has had.

Owns the settings of the C library's allocator. Never allocates anything itself.

    keep_freed_memory()
"""

import ctypes
import platform

# Of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed memory for the next allocation instead of giving it back; whether that was done.

    A network on a CPU frees its activations at each step. glibc gives such large blocks back to the
    system at once and takes them anew at the next step, when the kernel fills every page with
    zeros: a fifth of a step's time. Only glibc has these settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))  # no blocks of their own, no trimming
    return all([libc.mallopt(name, value) == 1 for name, value in settings])
