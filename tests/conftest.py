"""What every test gets."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Torch computes on one thread, so that sums come out in one order."""
    torch.set_num_threads(1)
