"""Costs: what each action and transfer takes, and how they are written down."""

import json
import math
from dataclasses import replace

import pytest

from intandem.costs import CostModel, costs_from_json, parse_costs
from intandem.ir import Action, Message

FORWARD = Message(Action.parse("0F3"), 1)


def test_seconds_of_each_kind():
    """B is I and W together."""
    costs = CostModel.uniform(2, 1.0, 2.0, 4.0)

    kinds = [costs.seconds(Action.parse(text)) for text in ("1F0", "1I0", "1W0", "1B0")]
    assert kinds == [1.0, 2.0, 4.0, 6.0]


def test_a_whole_backward_may_cost_less_than_its_halves():
    """B is what is given, if it is."""
    costs = CostModel((1.0,), (1.0,), (1.0,), backward_s=(1.5,))

    assert costs.seconds(Action.parse("0B0")) == 1.5


def test_transfer_is_latency_and_bytes():
    """Both ways across a boundary; a skip counts the boundary before the later stage."""
    costs = CostModel(
        (1.0,) * 3,
        (1.0,) * 3,
        (1.0,) * 3,
        latency_s=0.5,
        bandwidth_bytes_per_s=10.0,
        boundary_bytes=(20, 40),
    )

    assert costs.transfer_s(FORWARD) == 2.5
    assert costs.transfer_s(Message(Action.parse("1B3"), 0)) == 2.5
    assert costs.transfer_s(Message(Action.parse("0F3"), 2)) == 4.5


def test_a_pair_costs_the_sum_unless_it_is_said_what_it_costs():
    """By the stage of its forward; of a whole backward or of one for the inputs alone."""
    forward, whole, half = map(Action.parse, ("1F3", "0B0", "0I0"))
    costs = CostModel.uniform(2, 1.0, 2.0, 4.0)
    overlapped = replace(costs, overlapped_s=(3.0, 5.0))

    assert (costs.pair_s(forward, whole), costs.pair_s(forward, half)) == (7.0, 3.0)
    assert overlapped.pair_s(forward, whole) == 5.0


def test_bytes_of_a_message():
    """What crosses before the later of two stages, whichever way it goes; 0 if unknown."""
    costs = replace(CostModel.uniform(3), boundary_bytes=(20, 40))

    assert [costs.message_bytes(*pair) for pair in ((0, 1), (2, 1), (0, 2))] == [20, 40, 40]
    assert CostModel.uniform(3).message_bytes(0, 1) == 0


def test_transfer_without_bytes_is_latency():
    """The uniform model has latency alone."""
    assert CostModel.uniform(2, transfer_s=0.25).transfer_s(FORWARD) == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward_s": ()}, "forward_s has no stages"),
        ({"backward_input_s": (1.0,)}, "backward_input_s has 1 values; expected 2"),
        ({"backward_s": (1.0,)}, "backward_s has 1 values; expected 2"),
        ({"forward_s": (1.0, -1.0)}, "forward_s has -1.0; expected a finite number, 0 or more"),
        ({"backward_weight_s": (1.0, math.nan)}, "backward_weight_s has nan"),
        ({"boundary_bytes": (1, 2)}, "boundary_bytes has 2 values; expected 1"),
        ({"activation_bytes": (1,)}, "activation_bytes has 1 values; expected 2"),
        ({"overlapped_s": (1.0, 0.5)}, r"overlapped_s \(FB\) of stage 1 is 0.5; expected at least"),
        ({"optimizer_s": (1.0,)}, "optimizer_s has 1 values; expected 2"),
        ({"reduction_s": (1.0, -1.0)}, "reduction_s has -1.0; expected a finite number"),
        ({"gradient_bytes": (1, 2, 3)}, "gradient_bytes has 3 values; expected 2"),
        ({"latency_s": math.inf}, "latency_s has inf"),
        ({"bandwidth_bytes_per_s": 0.0}, "bandwidth_bytes_per_s is 0.0; expected more than 0"),
    ],
)
def test_wrong_numbers_are_refused(change, message):
    """A model that exists is usable."""
    good = {name: (1.0, 1.0) for name in ("forward_s", "backward_input_s", "backward_weight_s")}

    with pytest.raises(ValueError, match=message):
        CostModel(**{**good, **change})


class TestShortForm:
    def test_split(self):
        """F, I and W."""
        assert parse_costs("F=1,I=2,W=3", num_stages=2) == CostModel.uniform(2, 1.0, 2.0, 3.0)

    def test_whole(self):
        """B alone is halved."""
        costs = parse_costs("F=1, B=3", num_stages=2, transfer_s=0.1)

        assert costs == CostModel.uniform(2, 1.0, 1.5, 1.5, transfer_s=0.1)

    def test_all(self):
        """B next to I and W is what the two cost together."""
        assert parse_costs("F=1,I=1,W=1,B=1.5", num_stages=1).backward_s == (1.5,)

    def test_pair(self):
        """FB is what a pair takes together; it stands for no B."""
        assert parse_costs("F=1,B=2,FB=2.5", num_stages=2).overlapped_s == (2.5, 2.5)
        with pytest.raises(ValueError, match="costs: I is missing in 'F=1,FB=2'"):
            parse_costs("F=1,FB=2", num_stages=2)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("F=1,I=1", "costs: W is missing in 'F=1,I=1'; expected F with B, or F, I and W"),
            ("I=1,W=1", "costs: F is missing"),
            ("F=1,X=1", "costs: found 'X=1'; expected F=, I=, W=, B= or FB= and seconds"),
            ("F=1,B=2,FB=x", "costs: FB is 'x'; expected seconds, 0 or more"),
            ("F=1,B=2,FB=0.9", r"of stage 0 is 0.9; expected at least its forward_s \(F\), 1"),
            ("F=1,I=1,W=1,F=2", "costs: F is given twice"),
            ("F=one,B=2", "costs: F is 'one'; expected seconds, 0 or more"),
            ("F=-1,B=2", "costs: F is '-1'; expected seconds, 0 or more"),
            ("F=nan,B=2", "costs: F is 'nan'"),
            ("", "costs: found ''"),
        ],
    )
    def test_strict(self, text, message):
        """The key at fault is named."""
        with pytest.raises(ValueError, match=message):
            parse_costs(text, num_stages=1)


GOOD = {"forward_s": [1, 2], "backward_input_s": [1, 1], "backward_weight_s": 1}


class TestJson:
    def test_lists_and_single_numbers(self):
        """A single number stands for every stage."""
        text = json.dumps({**GOOD, "latency_s": 0.5, "boundary_bytes": [8]})

        costs = costs_from_json(text, num_stages=2)

        assert costs == CostModel(
            (1.0, 2.0), (1.0, 1.0), (1.0, 1.0), latency_s=0.5, boundary_bytes=(8,)
        )

    def test_end_of_a_step(self):
        """Seconds of the optimizer and of the reduction, and the bytes of that."""
        text = json.dumps({**GOOD, "optimizer_s": 2, "reduction_s": [1, 0], "gradient_bytes": 8})

        costs = costs_from_json(text, num_stages=2)

        assert (costs.optimizer_s, costs.reduction_s) == ((2.0, 2.0), (1.0, 0.0))
        assert costs.gradient_bytes == (8, 8)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"optimizer_s": [1]}, "costs: 'optimizer_s' has 1 values; expected 2"),
            ({"gradient_bytes": 0.5}, "costs: 'gradient_bytes' has 0.5; expected a whole number"),
            ({"speed": 1}, "costs: unknown key 'speed'; known: forward_s, backward_input_s"),
            ({"forward_s": [1]}, "costs: 'forward_s' has 1 values; expected 2"),
            ({"forward_s": ["1", 2]}, "costs: 'forward_s' has '1'; expected a number"),
            ({"forward_s": [True, 2]}, "costs: 'forward_s' has True; expected a number"),
            ({"latency_s": [1]}, r"costs: 'latency_s' has \[1\]; expected a number"),
            ({"boundary_bytes": [1.5]}, "costs: 'boundary_bytes' has 1.5; expected a whole number"),
        ],
    )
    def test_strict(self, change, message):
        """The key at fault is named."""
        with pytest.raises(ValueError, match=message):
            costs_from_json(json.dumps({**GOOD, **change}), num_stages=2)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "costs: not JSON"),
            ("[]", "costs: found list; expected a JSON object"),
            ("{}", "costs: 'forward_s' is missing; expected one number per stage"),
            ('{"forward_s": 1, "forward_s": 2}', "costs: key 'forward_s' is given twice"),
        ],
    )
    def test_not_an_object(self, text, message):
        """What is not one JSON object with the three lists."""
        with pytest.raises(ValueError, match=message):
            costs_from_json(text, num_stages=1)
