"""Cuts are as good as trying all of them, and the same every time."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intandem.partition import Partition, partition_blocks


def brute_force(block_s, num_stages, min_blocks, crossing_bytes):
    """Every cut, ranked by slowest stage, bytes, squares, then earliest starts."""
    times = [Fraction(s) for s in block_s]
    ranked = []
    for cuts in combinations(range(1, len(times)), num_stages - 1):
        ends = (*cuts, len(times))
        starts = (0, *cuts)
        if min(e - s for s, e in zip(starts, ends, strict=True)) < min_blocks:
            continue
        stages = [sum(times[s:e]) for s, e in zip(starts, ends, strict=True)]
        crossing = sum(crossing_bytes[c - 1] for c in cuts)
        ranked.append((max(stages), crossing, sum(s * s for s in stages), starts))
    return min(ranked)[-1]


@st.composite
def problems(draw):
    num_blocks = draw(st.integers(1, 10))
    min_blocks = draw(st.integers(1, 2 if num_blocks > 1 else 1))
    num_stages = draw(st.integers(1, num_blocks // min_blocks))
    seconds = st.one_of(st.integers(0, 5).map(float), st.floats(0, 1e3))
    block_s = draw(st.lists(seconds, min_size=num_blocks, max_size=num_blocks))
    crossing = st.lists(st.integers(0, 3), min_size=num_blocks - 1, max_size=num_blocks - 1)
    return block_s, num_stages, min_blocks, draw(crossing)


@given(problems())
@settings(max_examples=300, deadline=None)
def test_is_what_trying_all_cuts_finds(problem):
    """Exactly, floats and ties included."""
    block_s, num_stages, min_blocks, crossing = problem

    found = partition_blocks(block_s, num_stages, min_blocks=min_blocks, crossing_bytes=crossing)

    assert found.starts == brute_force(block_s, num_stages, min_blocks, crossing)


def test_floats_are_added_exactly():
    """0.1 + 0.2 and 0.3 differ in the last bit; the cut that is really better is taken."""
    assert partition_blocks([0.1, 0.2, 0.3], 2).starts == (0, 2)
    assert partition_blocks([0.3, 0.2, 0.1], 2).starts == (0, 1)


def test_even_among_equals():
    """A slow block decides the maximum; the rest is still spread evenly."""
    assert partition_blocks([9, 1, 1, 1, 1], 3).sizes == (1, 2, 2)


def test_bytes_before_evenness():
    """With equal slowest stages the cheap boundary wins over the even one."""
    found = partition_blocks([9, 1, 1, 1, 1], 3, crossing_bytes=[5, 1, 5, 5])

    assert found.sizes == (1, 1, 3)


def test_no_byte_is_worth_a_slower_stage():
    """The even cut is the fastest, and is taken although another one is for free."""
    assert partition_blocks([1, 1, 1, 1], 2, crossing_bytes=[0, 9, 0]).sizes == (2, 2)


def test_hundreds_of_blocks():
    """Big enough models finish, and equal blocks give equal stages."""
    assert set(partition_blocks([0.001] * 512, 64).sizes) == {8}


def test_partition_tells_its_parts():
    """Sizes, ranges and stage times follow from the starts."""
    partition = Partition((0, 2), 5)

    assert partition.num_stages == 2
    assert partition.sizes == (2, 3)
    assert partition.ranges == (range(2), range(2, 5))
    assert partition.stage_s([1, 2, 3, 4, 5]) == (3, 12)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 2], 3), {}, "3 stages of at least 1 blocks need 3, the model has 2; use at most 2"),
        (([1] * 5, 3), {"min_blocks": 2}, "need 6, the model has 5; use at most 2 stages"),
        (([1], 0), {}, "num_stages=0, min_blocks=1"),
        (([1, -1.0], 1), {}, "block_s has -1.0"),
        (([float("nan")], 1), {}, "block_s has nan"),
        (([1, 2], 1), {"crossing_bytes": []}, "crossing_bytes has 0 values for 2 blocks"),
    ],
)
def test_refuses(arguments, options, message):
    """The message has the numbers and the remedy."""
    with pytest.raises(ValueError, match=message):
        partition_blocks(*arguments, **options)
