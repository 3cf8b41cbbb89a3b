"""``intandem run``: start a script on several local processes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from intandem.runtime.launcher import MAX_RANKS, Show, launch_command
from intandem.runtime.launcher.launch import module_command, script_command
from intandem.runtime.verdict import verdict_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Start a Python script as N processes of one run on this machine. Each finds the others the way it
would under torchrun: the same script runs with python, intandem run and torchrun.

When one rank raises, dies, stops or leaves early, all ranks end within seconds, each with an error
that names that rank, and this command returns its exit code (128 + number for a signal; never 0).
"""

_EXAMPLES = """\
examples:
  intandem run --ranks 2 train.py
  intandem run --ranks 4 train.py --lr 3e-4 --steps 100     (what follows the script is its own)
  intandem run --ranks 2 -m mypackage.train --lr 3e-4
  OMP_NUM_THREADS=4 intandem run --ranks 2 train.py         (default: cores divided by ranks)
"""


def main(argv: Sequence[str]) -> int:
    """Run the command with ``argv`` and return the exit status."""
    own, target = _split(argv)
    parser = _parser()
    options = parser.parse_args(own)
    as_module = target[:1] == ["-m"]
    target = target[as_module:]
    if not target:
        missing = "give a module after -m" if as_module else "give a SCRIPT, or -m MODULE"
        parser.error(f"nothing to run: {missing}")
    if not 1 <= options.ranks <= MAX_RANKS:
        parser.error(f"--ranks must be from 1 to {MAX_RANKS}, got {options.ranks}")
    make_command = module_command if as_module else script_command
    command = make_command(target[0], target[1:])
    outcome = launch_command(command, ranks=options.ranks, show=Show(options.output))
    if outcome.verdict is not None:
        headline = verdict_text(outcome.verdict).partition("\n")[0]
        print(f"intandem run: {headline}; exit code {outcome.exit_code}", file=sys.stderr)
    return outcome.exit_code


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Own options, and what to run: ``SCRIPT args`` or ``-m MODULE args``, untouched."""
    index = 0
    while index < len(argv) and argv[index].startswith("-") and argv[index] not in {"-m", "--"}:
        index += 2 if argv[index] in {"--ranks", "--output"} else 1
    rest = list(argv[index:])
    return list(argv[:index]), rest[1:] if rest[:1] == ["--"] else rest


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        msg = f"{text!r} is no number; expected a whole number from 1 to {MAX_RANKS}"
        raise argparse.ArgumentTypeError(msg) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="intandem run",
        usage="intandem run --ranks N [--output prefix|plain] (SCRIPT | -m MODULE) [args ...]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--ranks", type=_count, required=True, metavar="N", help="processes to start"
    )
    parser.add_argument(
        "--output",
        choices=[show.value for show in Show],
        default=Show.PREFIX.value,
        help="lines of ranks other than 0: after '[rank 1] ' (default), or as they are; rank 0's "
        "output is never touched",
    )
    return parser
