import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

COUNT_FAULTS = """
import resource
from pathlib import Path
import numpy as np
from nuswide.core.allocator import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 * 2**20, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

before = min(faults() for _ in range(3))
start_mb = resident_mb()
with freed_memory_kept() as is_done:
    assert is_done
    faults()
    inside = min(faults() for _ in range(3))
    inside_mb = resident_mb()
after = min(faults() for _ in range(3))
print(before, inside, after, inside_mb - start_mb, resident_mb() - start_mb)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_kept_inside_alone_and_given_back_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True)
    before, inside, after, kept_mb, left_mb = map(float, done.stdout.split())
    assert before > 20 and inside == 0 and after > 20, done.stdout + done.stderr
    assert kept_mb > 60 and left_mb < 20, done.stdout
