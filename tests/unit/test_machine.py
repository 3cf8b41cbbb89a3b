"""The machine: ranks, links and wires."""

import math

import pytest

from intandem.machine import Link, Machine

SLOW = Link(1.0, 10.0)


def test_links_of_single_pairs():
    """A directed pair has the link given for it, and any other the default."""
    machine = Machine(3, links={(0, 1): SLOW})

    assert machine.link_of(0, 1) == SLOW
    assert machine.link_of(1, 0) == machine.link_of(1, 2) == Link()


def test_uniform():
    """One link for all, and reductions at its speed."""
    machine = Machine.uniform(2, latency_s=1.0, bandwidth_bytes_per_s=10.0)

    assert machine.link_of(1, 0) == SLOW
    assert machine.reduction_bytes_per_s == 10.0


def test_is_a_value():
    """Two alike are equal and hash alike; changing what it was made from changes nothing."""
    links = {(0, 1): SLOW}
    machine = Machine(2, links=links)
    links.clear()

    assert machine == Machine(2, links={(0, 1): SLOW})
    assert hash(machine) == hash(Machine(2, links={(0, 1): SLOW}))
    assert machine != Machine(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_ranks": 0}, "num_ranks is 0; expected at least 1"),
        ({"links": {(0, 2): SLOW}}, r"links has the pair \(0, 2\); expected two different ranks"),
        ({"links": {(1, 1): SLOW}}, r"links has the pair \(1, 1\)"),
        ({"links": {(-1, 1): SLOW}}, r"links has the pair \(-1, 1\)"),
        ({"shared_wires": (((0, 2),),)}, r"shared_wires has the pair \(0, 2\)"),
        (
            {"shared_wires": (((0, 1),), ((0, 1), (1, 0)))},
            r"shared_wires has the pair \(0, 1\) twice; expected it on one wire",
        ),
        ({"memory_bytes": (1,)}, r"memory_bytes is \(1,\); expected 2 sizes or none"),
        ({"memory_bytes": (1, -1)}, r"memory_bytes is \(1, -1\)"),
        ({"reduction_bytes_per_s": 0}, "reduction_bytes_per_s is 0; expected more than 0"),
    ],
)
def test_wrong_numbers_are_refused(change, message):
    """A machine that exists is usable."""
    with pytest.raises(ValueError, match=message):
        Machine(**{"num_ranks": 2, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_s": -1.0}, "latency_s is -1.0; expected a finite number, 0 or more"),
        ({"latency_s": math.inf}, "latency_s is inf"),
        ({"bandwidth_bytes_per_s": 0.0}, "bandwidth_bytes_per_s is 0.0; expected more than 0"),
        ({"bandwidth_bytes_per_s": math.nan}, "bandwidth_bytes_per_s is nan"),
    ],
)
def test_wrong_links_are_refused(change, message):
    """The number at fault is named."""
    with pytest.raises(ValueError, match=message):
        Link(**change)
