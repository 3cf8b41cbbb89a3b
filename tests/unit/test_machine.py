"""The machine: ranks, links and wires."""

import json
import math

import pytest

from intandem.machine import Link, Machine, machine_from_json

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


class TestJson:
    def test_all(self):
        """What a link leaves out is the default link's; one size is every rank's."""
        text = json.dumps(
            {
                "latency_s": 0.5,
                "bandwidth_bytes_per_s": 8,
                "links": [{"from": 0, "to": 1, "bandwidth_bytes_per_s": 2}],
                "shared_wires": [[[0, 1], [0, 2]], [[1, 0]]],
                "transfers_overlap": False,
                "memory_bytes": 100,
                "reduction_bytes_per_s": 4,
            }
        )

        assert machine_from_json(text, num_ranks=3) == Machine(
            3,
            Link(0.5, 8.0),
            {(0, 1): Link(0.5, 2.0)},
            (((0, 1), (0, 2)), ((1, 0),)),
            transfers_overlap=False,
            memory_bytes=(100, 100, 100),
            reduction_bytes_per_s=4.0,
        )

    def test_nothing(self):
        """An empty object is a machine on which messages take no time."""
        assert machine_from_json("{}", num_ranks=2) == Machine(2)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"speed": 1}, "machine: unknown key 'speed'; known: latency_s, bandwidth_bytes_per_s"),
            ({"latency_s": "1"}, "machine: 'latency_s' has '1'; expected a number"),
            ({"links": 1}, "machine: 'links' has 1; expected a list"),
            ({"links": [1]}, "machine: 'links': found int; expected a JSON object"),
            ({"links": [{"form": 0}]}, "machine: 'links': unknown key 'form'; known: from, to"),
            ({"links": [{"from": 0}]}, "machine: 'links' has None; expected a number"),
            ({"links": [{"from": 0, "to": 2}]}, r"links has the pair \(0, 2\)"),
            (
                {"links": [{"from": 0, "to": 1, "latency_s": True}]},
                "machine: 'links': 'latency_s' has True; expected a number",
            ),
            ({"shared_wires": [[[0]]]}, r"machine: 'shared_wires' has \[0\]; expected a pair"),
            ({"shared_wires": [[0]]}, "machine: 'shared_wires' has 0; expected a list"),
            ({"transfers_overlap": 1}, "machine: 'transfers_overlap' has 1; expected true or"),
            ({"memory_bytes": [1, 2.5]}, "machine: 'memory_bytes' has 2.5; expected a whole"),
            ({"memory_bytes": [1]}, r"memory_bytes is \(1,\); expected 2 sizes"),
            ([], "machine: found list; expected a JSON object"),
        ],
    )
    def test_strict(self, content, message):
        """The key at fault is named."""
        with pytest.raises(ValueError, match=message):
            machine_from_json(json.dumps(content), num_ranks=2)

    def test_a_link_given_twice(self):
        """Neither of the two is taken."""
        link = {"from": 0, "to": 1}
        with pytest.raises(ValueError, match=r"machine: 'links' has \(0, 1\) twice"):
            machine_from_json(json.dumps({"links": [link, link]}), num_ranks=2)
