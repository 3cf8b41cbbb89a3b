"""Costs on the command line, for any number of stages of the same model."""

import json

import pytest

from intandem.cli.cost_options import cut_again, read_costs
from intandem.costs import CostModel
from intandem.ir import ActionKind


def listed(tmp_path, **content):
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(content))
    return read_costs(str(file), None)


def test_numbers_are_per_stage_or_of_a_rank_s_share():
    """Twice the stages have half the time each, where the model is the same."""
    options = read_costs("F=1,I=2,W=4", 0.5)

    assert options.per_stage(8) == CostModel.uniform(8, 1.0, 2.0, 4.0, 0.5)
    assert options.of_model(4, 4) == CostModel.uniform(4, 1.0, 2.0, 4.0, 0.5)
    assert options.of_model(8, 4) == CostModel.uniform(8, 0.5, 1.0, 2.0, 0.5)
    assert options.num_listed is None


def test_whole_backwards_are_cut_alike():
    """B that is more than I and W stays so."""
    found = read_costs("F=1,B=3,I=1,W=1", None).of_model(4, 2)

    assert (found.forward_s, found.backward_s) == ((0.5,) * 4, (1.5,) * 4)


def test_lists_are_cut(tmp_path):
    """Each stage in equal parts; what crosses within a stage is what crosses after it."""
    options = listed(
        tmp_path,
        forward_s=[2, 4],
        backward_input_s=1,
        backward_weight_s=1,
        boundary_bytes=[100],
        activation_bytes=[10, 21],
        latency_s=0.25,
    )

    assert options.num_listed == 2
    found = options.of_model(4, 2)
    assert found.forward_s == (1, 1, 2, 2)
    assert found.boundary_bytes == (100, 100, 100)
    assert found.activation_bytes == (5, 5, 11, 11)
    assert found.latency_s == 0.25


def test_lists_are_joined(tmp_path):
    """Neighbours add up; what crosses between them crosses no more."""
    options = listed(
        tmp_path,
        forward_s=[1, 2, 3, 4],
        backward_input_s=[1, 1, 1, 1],
        backward_weight_s=[0, 1, 0, 1],
        boundary_bytes=[7, 8, 9],
    )

    found = options.of_model(2, 2)
    assert [found.kind_s(kind) for kind in ActionKind] == [(3, 7), (3, 3), (2, 2), (1, 1)]
    assert found.boundary_bytes == (8,)
    assert options.of_model(4, 2).forward_s == (1, 2, 3, 4)
    assert cut_again(found, 1).forward_s == (10,)


def test_work_is_the_same_however_it_is_cut():
    """Seconds of the model, added up."""
    costs = CostModel((1.0, 2.0, 3.0), (2.0,) * 3, (0.5, 1.5, 2.5))
    for num_stages in (1, 3, 6, 9):
        again = cut_again(costs, num_stages)
        for kind in ActionKind:
            assert sum(again.kind_s(kind)) == pytest.approx(sum(costs.kind_s(kind)))


def test_lists_that_do_not_fit(tmp_path):
    """Three stages are neither two nor four."""
    options = listed(tmp_path, forward_s=[1, 2, 3], backward_input_s=1, backward_weight_s=1)

    with pytest.raises(ValueError, match="costs of 3 stages are neither joined nor cut into 4"):
        options.of_model(4, 4)


@pytest.mark.parametrize(
    ("costs", "transfer_s", "message"),
    [
        ("F=1,I=1", None, "W is missing"),
        ("F=1,X=1", None, "found 'X=1'"),
        ("nowhere", None, "--costs nowhere: expected F=1,I=1,W=1, F=1,B=2 or the name of a JSON"),
        ("F=1,B=2", -1.0, "--transfer is -1; expected seconds, 0 or more"),
        ("F=1,B=2", float("nan"), "--transfer is nan; expected seconds, 0 or more"),
        ("{}", 1.0, "--transfer goes with --costs F=...; put latency_s into the JSON file"),
    ],
)
def test_refused(costs, transfer_s, message):
    """At once, not where they are used."""
    with pytest.raises(ValueError) as caught:
        read_costs(costs, transfer_s)

    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "found list; expected a JSON object"),
        ("{", "not JSON"),
        ('{"forward_s": 1}', "'backward_input_s' is missing"),
        ('{"speed": 1}', "unknown key 'speed'"),
        (
            '{"forward_s": [1, 2], "backward_input_s": [1], "backward_weight_s": 1}',
            "'backward_input_s' has 1 values; expected 2",
        ),
    ],
)
def test_files_that_are_wrong(tmp_path, content, message):
    """The message names the file and the key."""
    file = tmp_path / "costs.json"
    file.write_text(content)

    with pytest.raises(ValueError) as caught:
        read_costs(str(file), None)

    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
