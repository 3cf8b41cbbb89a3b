"""What every test gets, and what tests say at the end of a run."""

import os
import sys

import pytest
import torch
from hypothesis import settings

# A commit's tests try the same examples wherever they run; HYPOTHESIS=explore tries others.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS", "fixed"))


@pytest.fixture(autouse=True)
def one_thread():
    """Torch computes on one thread, so that sums come out in one order."""
    torch.set_num_threads(1)


@pytest.fixture
def say(record_property):
    """Say a figure that is shown when all tests are over, whether or not the test passes."""
    return lambda text: record_property("said", text)


def pytest_terminal_summary(terminalreporter):
    """Show what tests have said."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.getreports(kind)]
    said = [text for r in reports for key, text in r.user_properties if key == "said"]
    pretend_gpu = sys.modules.get("pretend_gpu")
    if pretend_gpu is not None and pretend_gpu.why_not:
        said.append(f"tests that need a GPU were skipped: {pretend_gpu.why_not}")
    for text in sorted(said):
        terminalreporter.write_line(text)
