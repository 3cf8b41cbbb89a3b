"""The pure parts that benchmarks share, and how sides of ``two_cores`` are named and counted."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from common.gradients import largest_error
from common.ratios import interval_of_median, paired_ratio
from common.rounds import Progress, take_turns, time_left_s, turns
from common.tables import markdown
from common.workers import WorkerError, Workers, rank_environments
from overhead.noting import noting_us
from two_cores.report import merged, table
from two_cores.sides import PARTS, Comparison, Side, parse_side


def test_every_other_round_is_in_reverse():
    order = [turn.side for turn in turns(["a", "b", "c"], 3)]

    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]


def test_what_turns_return_is_kept_by_side_in_the_order_of_rounds():
    numbers = iter(range(10))

    found = take_turns(["a", "b"], 2, lambda _: float(next(numbers)), "test")

    assert found == {"a": [0.0, 3.0], "b": [1.0, 2.0]}


def test_time_left_goes_on_as_before():
    assert time_left_s(2, 6, 10.0) == pytest.approx(20.0)
    assert time_left_s(0, 6, 10.0) == 0.0


def test_progress_says_what_is_left():
    seconds = iter([0.0, 60.0, 60.0, 60.0, 60.0])
    progress = Progress(4, "rounds", clock=lambda: next(seconds))
    progress.advance()

    assert progress.line() == "rounds: 1 of 4, 1.0 min passed, about 3.0 min left"


def test_ratios_are_of_the_same_round():
    """A machine that is twice as slow in some rounds does not change them."""
    slow, factors = [1.0, 2.0, 1.0, 2.0, 1.0], [1.2, 1.0, 1.2, 1.0, 1.1]

    found = paired_ratio([s * f for s, f in zip(slow, factors, strict=True)], slow)

    assert found.median == pytest.approx(1.1)
    assert found.num_pairs == 5


def test_an_interval_is_the_same_each_time_and_holds_the_median():
    values = [1.0, 1.2, 1.1, 0.9, 1.3, 1.15, 1.05]

    low, high = interval_of_median(values)

    assert (low, high) == interval_of_median(values)
    assert 0.9 <= low < 1.1 < high <= 1.3


def test_an_interval_narrows_with_more_rounds():
    few, many = ([0.9, 1.1] * n for n in (4, 400))
    widths = [high - low for low, high in (interval_of_median([*v, 1.0]) for v in (few, many))]

    assert widths[1] <= widths[0]
    assert paired_ratio([1.0, 1.0], [1.0, 1.0]).num_pairs == 2


def test_a_ratio_of_one_round_has_no_interval():
    assert str(paired_ratio([1.5], [1.0])) == "1.500"
    assert str(paired_ratio([1.5, 1.5], [1.0, 1.0])) == "1.500 (1.500 to 1.500)"


def test_gradients_that_are_off_or_missing_are_refused():
    expected = {"a": torch.ones(4), "b": torch.ones(2)}

    assert largest_error({**expected, "b": torch.ones(2) + 1e-6}, expected) < 1e-5
    with pytest.raises(WorkerError, match="gradient of b is off by"):
        largest_error({**expected, "b": torch.ones(2) * 1.01}, expected)
    with pytest.raises(WorkerError, match="gradient of b is off by nan"):
        largest_error({**expected, "b": torch.ones(2) * torch.nan}, expected)
    with pytest.raises(WorkerError, match="gradients of 1 parameters; expected 2"):
        largest_error({"a": torch.ones(4)}, expected)


def test_ratios_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no rounds to compare"):
        paired_ratio([], [])
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_tables_are_markdown():
    assert markdown(["a", "b"], [[1, None]]) == "|a|b|\n|---|---|\n|1||"
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        markdown(["a", "b"], [[1]])


def test_sides_are_read_from_their_names():
    assert parse_side("torch:1F1B:5") == Side("torch", "1F1B", (5,))
    assert parse_side("deepspeed:5") == Side("deepspeed", "1F1B", (5,))
    assert parse_side("gloo-barrier:zb-h1") == Side("gloo-barrier", "zb-h1")
    with pytest.raises(ValueError, match="'glue:1f1b' is no side; expected one of one, threads"):
        parse_side("glue:1f1b")


def test_two_independent_processes_count_twice():
    assert parse_side("ceiling").steps_done(4) == 2 * parse_side("one").steps_done(4) == 4
    assert parse_side("gloo:1f1b").steps_done(4) == 4
    assert parse_side("gloo-barrier:1f1b").steps_done(4) == 4
    assert not parse_side("ceiling").is_launched


def test_what_runs_by_itself_is_compared_with_one_process_and_the_ceiling():
    for comparison in (comparison for part in PARTS.values() for comparison in part):
        assert comparison.sides[0] == "one"
        assert "ceiling" in comparison.sides
        assert len(set(comparison.sides)) == len(comparison.sides)
        for name in comparison.sides:
            parse_side(name)


def test_zero_bubble_is_over_1f1b_of_the_same_kind():
    """A side with a barrier is never held against one without."""

    def side(*tokens_per_s):
        return {
            "tokens_per_s": tokens_per_s,
            "peak_bytes": [10**6],
            "steps_in_turn": 1,
            "gradient_error": 0.0,
        }

    sides = {
        "one": side(1.0, 1.0),
        "gloo:1f1b": side(2.0, 2.0),
        "gloo:zb-h1": side(3.0, 3.0),
        "gloo-barrier:1f1b": side(1.0, 1.0),
        "gloo-barrier:zb-h1": side(1.2, 1.2),
        "deepspeed:5": {"failed": "no such thing"},
    }
    found = table({"comparisons": [{"microbatches": 8, "num_rounds": 2, "sides": sides}]})

    assert "|gloo:zb-h1 / gloo:1f1b|1.500 (1.500 to 1.500)|2|1.00|" in found
    assert "|gloo-barrier:zb-h1 / gloo-barrier:1f1b|1.200 (1.200 to 1.200)|2|1.00|" in found
    assert "|gloo:zb-h1 / gloo-barrier:zb-h1|2.500 (2.500 to 2.500)|2|1.00|" in found
    assert found.endswith("deepspeed:5 did not run: no such thing")


def test_a_process_that_ends_is_quoted():
    program = "import sys; print('some line', file=sys.stderr); sys.exit('there is no such thing')"

    with pytest.raises(WorkerError, match="process 0 ended: there is no such thing"):
        Workers([sys.executable, "-c", program], [{}])


def test_every_process_is_told_and_answers():
    folder = str(Path(__file__).resolve().parents[2] / "benchmarks")
    program = (
        f"import os, sys; sys.path.insert(0, {folder!r}); from common.workers import obey; "
        "obey(lambda: {'rank': lambda rest: [os.environ['RANK'], rest]})"
    )
    workers = Workers([sys.executable, "-c", program], rank_environments(2))
    try:
        assert workers.tell("rank of two") == [["0", "of two"], ["1", "of two"]]
        assert workers.tell_each(["rank a", "rank b"]) == [["0", "a"], ["1", "b"]]
    finally:
        workers.close()


def test_noting_is_told_from_not_noting():
    """The stand-in of a pass has all that a pass needs to run an action and take a message."""
    assert set(noting_us(10)) == {"an action", "an arrival"}


def test_starts_of_all_processes_are_one_comparison():
    """Rounds in order, the largest error and memory, every cut; who failed once, failed."""
    one = {"gradient_error": 1e-9, "cut": "a", "tokens_per_s": [1.0, 2.0], "peak_bytes": [5, 9]}
    other = {"gradient_error": 2e-9, "cut": "b", "tokens_per_s": [3.0], "peak_bytes": [7, 8]}
    gone = {"failed": "it ended"}

    found = merged([{"x": one, "y": one}, {"x": other, "y": gone}])

    assert found["y"] == gone
    assert found["x"] == {
        "gradient_error": 2e-9,
        "cut": "a / b",
        "tokens_per_s": [1.0, 2.0, 3.0],
        "peak_bytes": [7, 9],
    }


def test_what_was_compared_alike_is_one_table():
    """References are shown once; each side is held against those of its own comparison."""

    def side(rate):
        return {
            "gradient_error": 0.0, "cut": "", "tokens_per_s": [rate] * 3, "peak_bytes": [1e6],
            "steps_in_turn": 1,
        }  # fmt: skip

    def compared(**sides):
        return {"microbatches": 8, "num_rounds": 3, "sides": sides}

    first = compared(one=side(1.0), **{"local:1f1b": side(2.0), "local:zb-h1": side(3.0)})
    second = compared(one=side(2.0), **{"local:1f1b": side(4.0), "local:zb-2p": side(7.0)})

    lines = table({"comparisons": [first, second]}).splitlines()

    assert sum(line.startswith("###") for line in lines) == 1
    assert sum(line.startswith("|one|") for line in lines) == 1
    assert sum(line.startswith("|local:1f1b|2|") for line in lines) == 1
    assert sum(line.startswith("|local:1f1b|") for line in lines) == 1
    (zb_2p,) = [line for line in lines if line.startswith("|local:zb-2p|")]
    assert zb_2p.split("|")[3].startswith("3.500")
    pairs = [
        line.split("|")[1] for line in lines if line.startswith("|local:zb-") and " / " in line
    ]
    assert pairs == ["local:zb-h1 / local:1f1b", "local:zb-2p / local:1f1b"]


def test_every_start_has_an_order_of_its_own():
    """The first side, which gradients are compared with, stays; all take part, and alike again."""
    comparison = Comparison(8, ("one", "a", "b", "c", "d", "e"), 15, 3, 3)
    orders = [comparison.of_start(index, 5) for index in range(3)]
    assert len({order.sides for order in orders}) == 3
    for order in orders:
        assert order.sides[0] == "one"
        assert sorted(order.sides) == sorted(comparison.sides)
        assert order.num_rounds == 5
    assert orders == [comparison.of_start(index, 5) for index in range(3)]
