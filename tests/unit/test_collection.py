"""The garbage collector is as it was once many values have been made."""

import gc

import pytest

from intandem.collection import uncollected


@pytest.mark.parametrize("was_on", [True, False])
def test_it_is_put_back(was_on):
    before = gc.isenabled()
    (gc.enable if was_on else gc.disable)()
    try:
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is was_on
    finally:
        (gc.enable if before else gc.disable)()
