"""A GPT on two cores: intandem, one process, two independent ones, and other people's pipelines.

    make peers                                                 # once, for DeepSpeed; optional
    python benchmarks/two_cores/run.py --json found.json --plot benchmarks/two_cores
    python benchmarks/two_cores/run.py --parts quick           # under two minutes
    python benchmarks/two_cores/run.py --parts every --rounds 1  # every schedule; over an hour
    python benchmarks/two_cores/run.py --microbatches 8 16 --sides one shared:1f1b shared:zb-h1

Sides take turns in every round, each for some steps; all others sleep meanwhile. What is compared
are tokens per second within a round.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.gradients import largest_error
from common.results import Results, finish, parser_of
from common.rounds import take_turns
from common.workers import WorkerError, Workers, rank_environments
from two_cores.report import figures, merged, table
from two_cores.sides import KINDS, PARTS, SIZES, Comparison, Side, parse_side

if TYPE_CHECKING:
    import argparse

HERE = Path(__file__).resolve().parent


class Setting(NamedTuple):
    """What all comparisons of a run have in common.

    Attributes:
        sizes: of the GPT, and ``rows`` of a micro-batch.
        peers_python: the interpreter that has DeepSpeed.
    """

    sizes: dict[str, int]
    peers_python: Path


class Running:
    """A side that runs.

    Args:
        name: of the side.
        comparison: that it is part of.
        setting: of the run.

    Raises:
        WorkerError: if it does not start.
    """

    def __init__(self, name: str, comparison: Comparison, setting: Setting) -> None:
        self.side: Side = parse_side(name)
        self.comparison, self.sizes = comparison, setting.sizes
        python = Path(sys.executable)
        if self.side.kind == "deepspeed":
            python = setting.peers_python
            if not python.exists():
                msg = f"there is no {python}; run `make peers` first"
                raise WorkerError(msg)
        count = self.side.num_processes
        environments = rank_environments(count) if self.side.is_launched else [{}] * count
        arguments = [name, str(comparison.microbatches), json.dumps(self.sizes)]
        self.workers = Workers([str(python), str(HERE / "worker.py"), *arguments], environments)

    def gradients(self, folder: Path) -> dict[str, torch.Tensor]:
        """Run a step without its update; return the gradients of all processes."""
        files = [folder / str(number) for number in range(self.side.num_processes)]
        self.workers.tell_each([f"gradients {file}" for file in files])
        found: dict[str, torch.Tensor] = {}
        for file in files:
            found |= torch.load(file)
        return found

    def tokens_per_s(self) -> float:
        """Have a turn."""
        comparison = self.comparison
        began_s = time.perf_counter()
        self.workers.tell(f"steps {self.side.steps_in_turn(comparison.num_steps)}")
        passed_s = time.perf_counter() - began_s
        tokens = comparison.microbatches * self.sizes["rows"] * self.sizes["seq"]
        return self.side.steps_done(comparison.num_steps) * tokens / passed_s


def start_all(
    comparison: Comparison, setting: Setting
) -> tuple[dict[str, Running], dict[str, dict[str, Any]]]:
    """Start every side and compare its gradients with the first one's, before anything is timed.

    Returns:
        The sides that run, and what is known of each, by name. A side that does not start, or has
        other gradients, is left out of the first, and why is in the second.
    """
    running: dict[str, Running] = {}
    known: dict[str, dict[str, Any]] = {}
    expected: dict[str, torch.Tensor] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name in comparison.sides:
            side = None
            try:
                side = Running(name, comparison, setting)
                found = side.gradients(Path(folder))
                expected = found if expected is None else expected
                known[name] = {"gradient_error": largest_error(found, expected)}
                known[name]["threads"] = side.workers.tell("threads")
                known[name]["cut"] = side.workers.tell("cut")[0]
                running[name] = side
            except WorkerError as error:
                known[name] = {"failed": str(error)}
                if side is not None:
                    side.workers.close()
            print(f"{name}: {known[name]}", file=sys.stderr, flush=True)
    return running, known


class Turns:
    """Gives sides their turns; one that fails has no more, and the others go on."""

    def __init__(self, running: dict[str, Running], known: dict[str, dict[str, Any]]) -> None:
        self.running, self.known = running, known

    def tokens_per_s(self, name: str) -> float:
        """Have a turn; not a number once the side has failed."""
        if name in self.running:
            try:
                return self.running[name].tokens_per_s()
            except WorkerError as error:
                self.known[name] = {"failed": str(error)}
                self.running.pop(name).workers.close()
        return math.nan


def compare(comparison: Comparison, setting: Setting) -> Results:
    """Run all rounds, some of them with each start of the processes; return what was measured.

    Where a process's memory lies makes it slower or faster for as long as it lives.
    """
    starts, rounds = comparison.num_starts, comparison.num_rounds
    shares = [rounds // starts + (index < rounds % starts) for index in range(starts)]
    found = [
        _compare_once(comparison.of_start(index, share), setting)
        for index, share in enumerate(shares)
        if share
    ]
    together = merged(found)
    return {
        "microbatches": comparison.microbatches,
        "num_rounds": rounds,
        "num_starts": len(found),
        "sides": {name: together[name] for name in comparison.sides},
    }


def _compare_once(comparison: Comparison, setting: Setting) -> dict[str, dict[str, Any]]:
    """Start all sides and run all rounds; return what is known of each side."""
    running, known = start_all(comparison, setting)
    turns = Turns(running, known)
    try:
        for name in list(running):
            turns.tokens_per_s(name)  # not counted: the first steps make buffers
        for side in running.values():
            side.workers.tell("forget")
        what = f"M = {comparison.microbatches}"
        rates = take_turns(list(running), comparison.num_rounds, turns.tokens_per_s, what)
        for name, side in running.items():
            known[name] |= {
                "tokens_per_s": rates[name],
                "peak_bytes": side.workers.tell("peak"),
                "steps_in_turn": side.side.steps_in_turn(comparison.num_steps),
            }
    finally:
        for side in running.values():
            side.workers.close()
    return known


def asked_for(options: argparse.Namespace) -> list[Comparison]:
    """Return what the options ask for."""
    wanted = options.microbatches
    if options.sides or (wanted and not options.parts):
        sides = tuple(options.sides or PARTS["headline"][0].sides)
        chosen = [Comparison(m, sides, 15, 3) for m in wanted or [16]]
    else:
        parts = [c for part in options.parts or ("headline", "sizes") for c in PARTS[part]]
        chosen = [c for c in parts if not wanted or c.microbatches in wanted]
    if not chosen:
        known = ", ".join(str(m) for m in sorted({part.microbatches for part in parts}))
        sys.exit(f"--microbatches {wanted}: the parts asked for compare M = {known}")
    return [
        c._replace(
            num_rounds=options.rounds or c.num_rounds,
            num_steps=options.steps or c.num_steps,
            num_starts=options.starts or c.num_starts,
        )
        for c in chosen
    ]


def measure(options: argparse.Namespace) -> Results:
    """Run one comparison after the other."""
    chosen = asked_for(options)
    setting = Setting({name: getattr(options, name) for name in SIZES}, options.peers_python)
    for name in {name for comparison in chosen for name in comparison.sides}:
        try:
            parse_side(name)
        except ValueError as error:  # told before anything runs
            sys.exit(f"--sides: {error}")
    found = []
    for number, comparison in enumerate(chosen):
        print(f"comparison {number + 1} of {len(chosen)}", file=sys.stderr, flush=True)
        try:
            found.append(compare(comparison, setting))
        except KeyboardInterrupt:
            print("stopped; what is complete is kept", file=sys.stderr, flush=True)
            break
    return {"sizes": setting.sizes, "comparisons": found}


def main() -> None:
    """Measure and print."""
    parser = parser_of(
        f"{__doc__}\nKinds of sides:\n"
        + "\n".join(f"  {kind:14} {meaning}" for kind, meaning in KINDS.items())
    )
    parser.add_argument(
        "--parts", nargs="+", choices=list(PARTS),
        help="what to run; by default headline and sizes, about half an hour",
    )  # fmt: skip
    parser.add_argument("--microbatches", type=int, nargs="+", help="M; of parts, those")
    parser.add_argument("--sides", nargs="+", help="names of sides; instead of parts")
    parser.add_argument("--rounds", type=int, help="turns of each side; by default 15, or less")
    parser.add_argument("--starts", type=int, help="of all processes; rounds are shared out")
    parser.add_argument("--steps", type=int, help="of a pipeline's turn")
    parser.add_argument(
        "--peers-python", type=Path, default=HERE.parents[1] / ".venv-peers/bin/python",
        help="the interpreter that has DeepSpeed (`make peers`)",
    )  # fmt: skip
    for name, size in SIZES.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=size, help=f"of the GPT; by default {size}")
    options = parser.parse_args()
    finish(options, lambda: measure(options), table, figures)


if __name__ == "__main__":
    main()
