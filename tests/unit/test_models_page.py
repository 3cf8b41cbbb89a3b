"""docs/models.md says what the catalogue of the zoo holds."""

import pytest

from zoo.catalogue import entries
from zoo.table import PAGE, cells, look_at, names_on, row

ENTRIES = entries()


def test_page_lists_the_catalogue():
    """Every entry is on the page once, working or refused as the catalogue says, and no other."""
    working, refused = names_on(PAGE.read_text(encoding="utf-8"))
    expected = [(e.name, e.library) for e in ENTRIES if e.refused is None]
    assert sorted(working) == sorted(expected)
    expected = [(e.name, e.library) for e in ENTRIES if e.refused is not None]
    assert sorted(refused) == sorted(expected)


def test_page_gives_every_refusal_a_remedy():
    """With the part of the message that the catalogue expects."""
    page = PAGE.read_text(encoding="utf-8")
    for entry in ENTRIES:
        if entry.refused is not None:
            assert entry.remedy in page


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_row(entry):
    """What the page says of an entry, but for digits of errors, is found again."""
    page = PAGE.read_text(encoding="utf-8").splitlines()
    finding = look_at(entry)
    if entry.refused is not None:
        assert entry.refused in finding.refusal
        return
    found = cells(entry, finding)
    line = next(line for line in page if line.startswith(row(found[:2])[:-1]))
    told = [cell.strip() for cell in line.strip("| ").split(" | ")]
    assert told[:5] == found[:5]
    assert told[6] == found[6]
    assert max(finding.errors.values()) <= 1e-12
