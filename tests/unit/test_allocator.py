"""Memory that a micro-batch frees is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")

SCRIPT = """
import resource
import torch
from intandem.runtime.allocator import keep_freed_memory

print(keep_freed_memory())
torch.set_num_threads(1)
layers = [torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)] * 8
model = torch.nn.Sequential(*layers, torch.nn.Linear(256, 4096))


def microbatches():
    for _ in range(8):
        output = model(torch.ones(256, 256))
        torch.nn.functional.cross_entropy(output, torch.zeros(256, dtype=torch.int64)).backward()


microbatches()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
microbatches()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_asked_for(**environment):
    """Whether memory is kept, and how many pages eight micro-batches ask the system for."""
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, check=True, timeout=60, env=os.environ | environment,
    )  # fmt: skip
    is_kept, num_pages = found.stdout.split()
    return is_kept == "True", int(num_pages)


def test_freed_memory_is_used_again():
    """Given back, it would be some ten thousand pages (seen: 8,000 to 16,000)."""
    is_kept, num_pages = pages_asked_for()
    assert is_kept
    assert num_pages < 4000


def test_what_the_environment_says_holds():
    assert not pages_asked_for(MALLOC_TRIM_THRESHOLD_="1000000")[0]
