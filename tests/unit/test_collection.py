"""The garbage collector is as it was once many values have been made."""

import gc

import pytest

from intandem.collection import uncollected


def fail_uncollected():
    with uncollected():
        assert not gc.isenabled()
        raise KeyError


@pytest.mark.parametrize("was_on", [True, False])
def test_it_is_put_back(was_on):
    """After an error, too."""
    before = gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(KeyError):
            fail_uncollected()
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if before else gc.disable)()
