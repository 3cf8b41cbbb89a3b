"""The figures of rehearsals: a table, and objects for JSON."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from intandem.cli.figures import show_order
from intandem.cli.tables import aligned
from intandem.rehearsal.request import NUM_WARMUP
from intandem.views import units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intandem.ir import Timeline
    from intandem.rehearsal import Rehearsal

_HEADINGS = (
    ("", "schedule"),
    ("", "stages"),
    ("simulated", "makespan"),
    ("measured", "makespan"),
    ("measured /", "simulated"),
    ("waits", "too long"),
    ("bubble", "simulated"),
    ("bubble", "measured"),
)


def rehearsal_object(rehearsal: Rehearsal) -> dict[str, object]:
    """Return what ``show`` says of the simulated step, and what happened, for JSON."""
    planned, measured = rehearsal.planned, rehearsal.measured
    shown = show_order(
        rehearsal.part.program, rehearsal.part.costs, "global", machine=rehearsal.machine
    )
    found = shown.as_object()
    del found["steps"]
    return {
        **found,
        "transport": rehearsal.kind.value,
        "measured_s": rehearsal.measured_s,
        "ratio": rehearsal.ratio,
        "overslept": rehearsal.overslept,
        "steps_s": [step.makespan_s for step in rehearsal.steps],
        "overlapping": _overlapping_object(rehearsal),
        "num_warmup": NUM_WARMUP,
        "measured_bubble_ratio": measured.bubble_ratio,
        "idle_s": idle_s(planned),
        "measured_idle_s": idle_s(measured),
        "measured_actions": [
            [str(span.action) for span in measured.of_rank(rank)]
            for rank in range(measured.num_ranks)
        ],
        "num_messages": rehearsal.traffic.num_messages,
        "message_bytes": rehearsal.traffic.num_bytes,
        "transfers": [
            {
                "ranks": [one.low, one.high],
                "num_bytes": one.num_bytes,
                "seconds": one.seconds,
            }
            for one in rehearsal.transfers
        ],
    }


def _overlapping_object(rehearsal: Rehearsal) -> dict[str, float] | None:
    if not rehearsal.overlapping:
        return None
    planned_s, measured_s = rehearsal.planned_overlapping_s, rehearsal.overlapping_s
    return {
        "simulated_step_s": planned_s,
        "measured_step_s": measured_s,
        "ratio": measured_s / planned_s if planned_s > 0 else 1.0,
        "simulated_gain": _gain(rehearsal.planned.makespan_s, planned_s),
        "measured_gain": _gain(rehearsal.measured_s, measured_s),
    }


def _gain(apart_s: float, overlapping_s: float) -> float:
    """How many times as fast steps are without a barrier."""
    return apart_s / overlapping_s if overlapping_s > 0 else 1.0


def idle_s(timeline: Timeline) -> list[float]:
    """Return the seconds of the makespan in which each rank does nothing."""
    ranks = range(timeline.num_ranks)
    return [timeline.makespan_s - timeline.busy_of_rank_s(rank) for rank in ranks]


def rehearsals_text(rehearsals: Sequence[Rehearsal], columns: int) -> str:
    """Return a table of all, the idle time of every rank, and what the figures mean."""
    lines = [tuple(h[row] for h in _HEADINGS) for row in (0, 1)]
    table = "\n".join(aligned([*lines, *map(_cells, rehearsals)]))
    note = fill(_note(rehearsals[0]), columns, break_on_hyphens=False)
    idle = "\n".join(line for rehearsal in rehearsals for line in _idle_lines(rehearsal))
    parts = [_title(rehearsals), table, _overlapping_text(rehearsals), idle, note]
    return "\n\n".join(part for part in parts if part)


def _overlapping_text(rehearsals: Sequence[Rehearsal]) -> str:
    """Return the table of steps without a barrier, if there are any."""
    if not rehearsals[0].overlapping:
        return ""
    headings = [
        ("no barrier", "simulated", "measured", "measured /", "gain", "gain"),
        ("", "step", "step", "simulated", "simulated", "measured"),
    ]
    rows = []
    for rehearsal in rehearsals:
        planned_s, measured_s = rehearsal.planned_overlapping_s, rehearsal.overlapping_s
        rows.append(
            (
                rehearsal.part.program.name,
                units.duration(planned_s, more_digits=1),
                units.duration(measured_s, more_digits=1),
                f"{measured_s / planned_s:.3f}" if planned_s > 0 else "",
                f"{_gain(rehearsal.planned.makespan_s, planned_s):.3f}",
                f"{_gain(rehearsal.measured_s, measured_s):.3f}",
            )
        )
    return "\n".join(aligned([*headings, *rows]))


def _title(rehearsals: Sequence[Rehearsal]) -> str:
    program = rehearsals[0].part.program
    counts = {rehearsal.part.program.num_microbatches for rehearsal in rehearsals}
    microbatches = " or ".join(map(str, sorted(counts)))
    kind = rehearsals[0].kind.value
    return f"rehearsed: {program.num_ranks} ranks ({kind}) · {microbatches} micro-batches"


def _cells(rehearsal: Rehearsal) -> tuple[str, ...]:
    return (
        rehearsal.part.program.name,
        str(rehearsal.part.program.placement.num_stages),
        units.duration(rehearsal.planned.makespan_s, more_digits=1),
        units.duration(rehearsal.measured_s, more_digits=1),
        f"{rehearsal.ratio:.3f}",
        units.share(max(0.0, rehearsal.overslept)),
        units.share(rehearsal.planned.bubble_ratio),
        units.share(rehearsal.measured.bubble_ratio),
    )


def _idle_lines(rehearsal: Rehearsal) -> tuple[str, str]:
    name = f"{rehearsal.part.program.name} idle"
    return (
        f"{name}, simulated: {_durations(rehearsal.planned)}",
        f"{name}, measured:  {_durations(rehearsal.measured)}",
    )


def _durations(timeline: Timeline) -> str:
    """Per rank; a rounding error below 0 is 0."""
    return "  ".join(units.duration(max(0.0, round(idle, 9))) for idle in idle_s(timeline))


def _note(rehearsal: Rehearsal) -> str:
    times_s = [transfer.seconds for transfer in rehearsal.transfers]
    took = "there are no messages"
    if times_s:
        least, most = units.duration(min(times_s)), units.duration(max(times_s))
        took = f"messages as measured between idle ranks before the first step, {least} to {most}"
    count = len(rehearsal.steps)
    steps = "one step" if count == 1 else f"the median of {count} steps"
    overlapping = ""
    if rehearsal.overlapping:
        overlapping = (
            " no barrier: each rank begins a step when it has done the last; gain: how many times "
            "as fast that is as beginning all together."
        )
    return (
        f"simulated: with durations as asked for; {took}. measured: {steps} after {NUM_WARMUP} "
        "of warm-up. waits too long: share by which the machine woke ranks late, as one that is "
        f"busy with other work does. idle: of the makespan, per rank.{overlapping}"
    )
