"""A cap in bytes: what it counts, that it holds, and that what is printed says so."""

import json
import random

import pytest

import intandem as it
from intandem.cli.cmd_search import main
from intandem.costs import CostModel
from intandem.lowering import lower
from intandem.simulator import memory_over_time, peak_bytes


def costs_of(num_stages, seed):
    """Unequal stages that keep, leave pending and hand on unequal bytes."""
    draw = random.Random(seed)
    seconds = [tuple(draw.uniform(0.7, 1.3) for _ in range(num_stages)) for _ in "FIW"]
    kept = tuple(draw.randrange(50, 150) for _ in range(num_stages))
    return CostModel(
        *seconds,
        latency_s=0.05,
        boundary_bytes=tuple(draw.randrange(10, 40) for _ in range(num_stages - 1)),
        activation_bytes=kept,
        pending_bytes=tuple(draw.randrange(20, 200) for _ in kept),
    )


def held(found, costs):
    """Per rank, the most that the simulator sees held, without messages."""
    program = lower(found.schedule, recompute=found.recompute)
    return tuple(
        max(use.activation_bytes + use.pending_bytes for use in row)
        for row in memory_over_time(program, costs)
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_figure_is_what_the_cap_counts(seed, recompute):
    """Activations and pending W's, as the simulator has them; messages come on top."""
    costs = costs_of(3, seed)
    cap = 2 * max(costs.activation_bytes) + max(costs.pending_bytes)

    found = it.search(
        costs,
        num_ranks=3,
        num_microbatches=5,
        memory_cap_bytes=cap,
        recompute=recompute,
        effort=0.02,
        solver="none",
    )

    assert max(found.peak_held_bytes) <= cap
    assert found.peak_held_bytes == held(found, costs)
    assert max(peak_bytes(found.schedule, costs)) > max(found.peak_held_bytes)


def test_inputs_of_forwards_that_run_again_count():
    """A cap that only recomputation fits: kept inputs and what a backward makes again."""
    costs = CostModel(*[(1.0,) * 2] * 3, boundary_bytes=(1,), activation_bytes=(10, 10))

    found = it.search(
        costs,
        num_ranks=2,
        num_microbatches=6,
        memory_cap_bytes=12,
        recompute=True,
        split_backward=False,
        solver="none",
    )

    assert found.recompute
    assert max(found.peak_held_bytes) <= 12
    assert found.peak_held_bytes == held(found, costs)


def test_no_forward_runs_again_whose_input_is_more_than_it_keeps():
    """Stage 3 keeps 2 bytes of an input of 5: running it again saves nothing."""
    costs = CostModel(
        (0.1,) * 4,
        (0.5,) * 4,
        (0.5,) * 4,
        boundary_bytes=(1, 1, 5),
        activation_bytes=(10, 10, 10, 2),
    )

    found = it.search(
        costs,
        num_ranks=2,
        num_microbatches=6,
        memory_cap_bytes=20,
        recompute=True,
        split_backward=False,
        effort=0.02,
        solver="none",
    )

    assert found.recompute == {0, 1, 2}
    assert max(held(found, costs)) <= 20
    assert found.peak_held_bytes == held(found, costs)


def test_what_is_printed(capsys, tmp_path):
    """The figure that the cap is for stays under it; with messages there is another line."""
    file = tmp_path / "costs.json"
    seconds = {key: 1 for key in ("forward_s", "backward_input_s", "backward_weight_s")}
    file.write_text(json.dumps({**seconds, "activation_bytes": [3, 3], "boundary_bytes": 3}))
    argv = ["--ranks", "2", "--microbatches", "4", "--memory-cap-bytes", "6", "--solver", "none"]
    argv += ["--costs", str(file)]

    assert main([*argv, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["peak_held_bytes"], found["peak_bytes"]) == ([6, 6], [9, 6])

    assert main(argv) == 0
    text = capsys.readouterr().out
    weights = "of activations and pending weight gradients at most; per rank: 6B 6B"
    assert f"memory        6 B, {weights}\n" in text
    messages = "at most, though no cap counts messages; per rank: 9B 6B"
    assert f"with messages 9 B, {messages}\n" in text


def test_the_help_says_what_is_not_counted(capsys):
    """Of the cap in bytes."""
    main(["--help"])

    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Messages (boundary_bytes) and weights are not counted" in text
