"""docs/schedules.md and its pictures are what docstrings and simulation say."""

import re
from dataclasses import replace

import pytest

from intandem.schedules import schedule_names
from pages import schedules
from pages.families import ABOUT

AGAIN = "run: cd tests && PYTHONPATH=../src:. python -m pages.schedules"


def test_page_is_up_to_date():
    """Every word of it is generated."""
    assert schedules.PAGE.read_text(encoding="utf-8") == schedules.render(), AGAIN


def test_pictures_are_up_to_date():
    """One for each schedule, and no other."""
    found = {f.name: f.read_text(encoding="utf-8") for f in schedules.PICTURES.glob("*")}
    drawn = schedules.pictures()

    assert found.keys() == drawn.keys(), AGAIN
    for name, svg in drawn.items():
        assert found[name] == svg, f"{name}: {AGAIN}"


def test_every_schedule_has_a_section_and_a_use():
    """With a picture, in the registry's order."""
    page = schedules.PAGE.read_text(encoding="utf-8")

    assert tuple(re.findall(r"^### (\S+)$", page, re.M)) == schedule_names()
    assert set(re.findall(r"images/schedules/(\S+)\.svg", page)) == set(schedule_names())
    assert set(schedule_names()) <= set(ABOUT)


def test_names_on_the_page_exist():
    """What is advised can be built."""
    page = schedules.PAGE.read_text(encoding="utf-8")
    advised = page.partition("## Which when")[2].partition("\n## ")[0]
    names = set(re.findall(r"`([a-z0-9-]+)`", advised))

    assert len(names) >= 6
    assert names <= set(schedule_names())


def test_a_formula_that_is_wrong_is_not_printed():
    """Each closed form is held against the simulation while the page is made."""
    wrong = replace(ABOUT["1f1b"], ratio=lambda p, m, _v: (p - 1) / m)

    with pytest.raises(ValueError, match=r"1f1b: .* is 0.375, simulated 0.27"):
        schedules.formula_line(wrong, schedules.built("1f1b"))
