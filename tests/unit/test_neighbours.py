"""Whether two ends of an edge find that they are on one machine; here they are threads."""

import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from intandem.runtime.transport import neighbours
from intandem.runtime.transport.neighbours import meet

HANG_S = 20


def met(source_willing=True, target_willing=True):
    """What both ends get."""
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        source = pool.submit(meet, store, is_source=True, willing=source_willing)
        target = pool.submit(meet, store, is_source=False, willing=target_willing)
        return source.result(HANG_S), target.result(HANG_S)


def test_they_are_connected():
    """Both ways."""
    source, target = met()
    with source, target:
        source.send(b"a")
        target.send(b"b")
        assert (target.recv(9), source.recv(9)) == (b"a", b"b")


@pytest.mark.parametrize("willing", [(True, False), (False, True), (False, False)])
def test_both_must_want_to(willing):
    """Else neither has a connection."""
    assert met(*willing) == (None, None)


def test_another_machine_has_another_name(monkeypatch):
    """Whatever can be reached: the path may be there on both."""
    names = iter("ab")
    monkeypatch.setattr(neighbours, "_machine", lambda: next(names))

    assert met() == (None, None)


def test_without_temporary_files_there_is_no_place_to_meet(monkeypatch):
    """A system that is read-only."""

    def refuse(**_):
        raise OSError

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)

    assert met() == (None, None)


def test_nothing_is_left_in_the_file_system(monkeypatch, tmp_path):
    """The place is gone once they have met."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    source, target = met()

    with source, target:
        assert list(tmp_path.iterdir()) == []
