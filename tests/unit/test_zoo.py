"""Every architecture of the zoo, in stages, with the numbers of one process."""

import pytest

from zoo.catalogue import entries
from zoo.examine import examine

pytestmark = [  # the libraries' own
    pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces a better way:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning"),
]

ENTRIES = {entry.name: entry for entry in entries()}
WORKING = [name for name, entry in ENTRIES.items() if entry.refused is None]
REFUSED = [name for name, entry in ENTRIES.items() if entry.refused is not None]


@pytest.mark.parametrize("name", WORKING)
def test_two_stages(name):
    """Loss, gradients and buffers are one process's, to 1e-12 in float64."""
    finding = examine(ENTRIES[name], stages=(2,))
    assert finding.refusal is None
    assert finding.captured
    assert finding.errors[2] <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_one_two_and_four_stages(name):
    """The same, and the same bits however many stages there are."""
    finding = examine(ENTRIES[name])
    assert finding.refusal is None
    assert max(finding.errors.values()) <= 1e-12
    assert finding.same_bits


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name):
    """What cannot be captured is refused before the first step, with the reason listed."""
    entry = ENTRIES[name]
    assert entry.remedy
    finding = examine(entry, stages=(2,))
    assert finding.refusal is not None
    assert entry.refused in finding.refusal
