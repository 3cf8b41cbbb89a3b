"""Several local ranks on one GPU give one process's gradients."""

import pytest
import torch

from intandem.equality import check
from models import SAMPLES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", ["gpt_tied", "batch_norm", "unet"])
def test_local_ranks_on_one_device(name, ranks):
    """Gradients, loss and buffers are those of the plain module on the same device."""
    model, batch, loss = SAMPLES[name]()
    moved = tuple(leaf.cuda() for leaf in batch)

    assert check(model.cuda(), moved, loss, ranks=ranks).equal
