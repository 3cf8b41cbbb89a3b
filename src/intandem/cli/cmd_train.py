"""``intandem train``: trains as a configuration says."""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path  # noqa: TC003  (tyro reads annotations)
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from intandem.cli.arguments import carry_out, parse_arguments
from intandem.cli.files import in_words
from intandem.cli.progress import reporting
from intandem.train.config import Config
from intandem.train.config_file import checked, read_config, write_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from intandem.cli.progress import Reporter
    from intandem.train.progress import Progress, State
    from intandem.train.trainer import Outcome

ABOUT = """Train as CONFIG.toml says: data, model, optimizer, stages, validation, checkpoints.

Every key of the file can be given here instead, which then counts; docs/train.md explains them. All
of them have defaults: an empty file trains a small GPT on the sources of Python's standard library.

SIGTERM and Ctrl-C end a run after the step that it is at, once it is saved. The exit code is then
143 or 130, so that a scheduler can tell it from a run that is complete (0); --resume goes on.

examples:
  intandem train gpt.toml
  intandem train gpt.toml --steps 200 --pipeline.ranks 4 --directory runs/short
  intandem train gpt.toml --resume
  intandem train gpt.toml --show              (print the whole configuration and end)
  intandem run --ranks 2 -m intandem train gpt.toml
  torchrun --nproc-per-node 2 -m intandem train gpt.toml
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``train`` takes."""

    config: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CONFIG", help="A .toml or .json file; docs/train.md has its keys."),
    ]
    resume: bool = False
    """Go on after the last complete checkpoint of the directory; begin if there is none."""
    show: bool = False
    """Print the configuration, every default included, and end."""
    format: Literal["text", "json"] = "text"
    """What is printed at the end. With json, progress goes to standard error."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""

    def work(arguments: Arguments) -> int:
        filled = replace(arguments, settings=read_config(arguments.config))
        again = parse_arguments(Arguments, argv, command="train", about=ABOUT, default=filled)
        return again if isinstance(again, int) else _train(again)

    return carry_out(work, Arguments, argv, command="train", about=ABOUT)


def _train(arguments: Arguments) -> int:
    """Train; returns the exit status: 1 of a run that failed while it trained, and says where.

    Raises:
        Exception: what is wrong with what was asked for, before anything is trained.
    """
    config = checked(arguments.settings)
    if arguments.show:
        print(write_config(config), end="")
        return 0
    from intandem.train.trainer import is_first, prepared

    console = Console(stderr=arguments.format == "json", highlight=False)
    if is_first():
        console.print(write_config(config), soft_wrap=True, markup=False)
    is_training = False
    try:
        with (
            _showing(console) if is_first() else nullcontext() as progress,
            prepared(config, resume=arguments.resume, progress=progress) as run,
        ):
            is_training = True
            outcome = run.train()
    except BrokenPipeError:
        raise
    except Exception as error:  # any: from here on it is no fault of what was asked for
        if not is_training:
            raise
        traceback.print_exc()
        print(f"intandem train: {in_words(error)}", file=sys.stderr)
        return 1
    if is_first():
        print(json.dumps(asdict(outcome)) if arguments.format == "json" else _as_text(outcome))
    return outcome.exit_code


class _Shown:
    """Shows on ``console`` how training goes; ``reporter`` has the line that changes."""

    def __init__(self, console: Console, reporter: Reporter) -> None:
        self._console, self._reporter = console, reporter

    def __call__(self, state: State) -> None:
        self._reporter(state)

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, soft_wrap=True, markup=False)


@contextmanager
def _showing(console: Console) -> Iterator[Progress]:
    with reporting(console) as reporter:
        yield _Shown(console, reporter)


def _as_text(outcome: Outcome) -> str:
    """Say how a run ended, a line for each thing."""
    unit, rate = outcome.unit, outcome.units_per_s
    lines = [f"step {outcome.step} of {outcome.num_steps}"]
    if outcome.loss is not None:
        lines[0] += f", loss {outcome.loss:.4f}, {rate:,.0f} {unit}/s"
    lines += [
        f"{name.replace('_', ' ')} {number:.4f}" for name, number in outcome.validation.items()
    ]
    if outcome.stopped_by is not None:
        kept = "nothing was saved, as checkpoint.every is 0"
        if outcome.saved_step is not None:
            kept = f"saved after step {outcome.saved_step}; go on with --resume"
        lines.append(f"stopped by {outcome.stopped_by}: {kept}")
    lines.append(f"run in {outcome.directory}")
    return "\n".join(lines)
