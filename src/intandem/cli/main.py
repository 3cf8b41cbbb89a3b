"""The ``intandem`` command: finds the subcommand and imports only that one."""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "demo": "train a small GPT on text found on this machine, in tandem, and draw where time went",
    "train": "train as a configuration file says: data, model, stages, checkpoints",
    "run": "start your script on N local processes: intandem run --ranks 2 train.py",
    "show": "draw a schedule, or compare all: grid, makespan, bubble ratio, peak activations",
    "search": "find the shortest schedule for given costs, ranks, micro-batches and memory",
    "rehearse": "run schedules on emulated ranks and compare with the simulator",
    "verify": "check a schedule or program file and print every finding",
    "report": "make the HTML report of a run: timelines, idle time, critical path, memory, curves",
    "check": "prove that a model's gradients in tandem are one process's",
}
"""Name of each command and its line in the overview; the module is ``cmd_<name>``."""


BROKEN_PIPE = 128 + 13
"""Exit status of a command whose output nobody reads any more, as a shell counts signals."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``intandem`` with ``argv`` and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"intandem {version('intandem')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        nearest = get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return _refuse(f"unknown command {name!r}; known: {', '.join(COMMANDS)}{hint}")
    from intandem.cli.files import in_words
    from intandem.errors import PipelineError

    try:
        status = int(importlib.import_module(f"intandem.cli.cmd_{name}").main(rest))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (PipelineError, ValueError, TypeError, OSError) as error:
        return _refuse(in_words(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return "\n".join(
        [
            "intandem: pipeline-parallel training with one process's numbers",
            "",
            "usage: intandem <command> [options]      (intandem <command> --help explains each)",
            "",
            *lines,
        ]
    )


def _refuse(message: str) -> int:
    print(f"intandem: {message}", file=sys.stderr)
    return 2
