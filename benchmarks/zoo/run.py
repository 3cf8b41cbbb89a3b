"""The zoo through torch's tracing pipeline and through ours: ``python benchmarks/zoo/run.py``.

Names of entries or families limit it, and keep the results of the others. Prints a line per entry,
writes ``results.json`` and ``results.md`` beside this file. Every entry runs in a process of its
own, with a time limit.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import sys
import time
import warnings
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "src"), str(ROOT / "tests")]

import torch  # noqa: E402
from peer import Verdict, judge, without_folders  # noqa: E402

from zoo.catalogue import entries  # noqa: E402
from zoo.examine import examine  # noqa: E402

LIMIT_S = 90.0
NUM_WORKERS = 2
RESULTS = HERE / "results.json"
Row = dict[str, Any]


def ours(entry: Any) -> Verdict:
    """What we make of an entry at two stages."""
    finding = examine(entry, stages=(2,))
    error = finding.errors.get(2)
    if finding.refusal is not None or error is None:
        return Verdict(reason=without_folders(finding.refusal or "it has one stage only"))
    return Verdict(finding.captured, error <= 1e-12, error)


def work(entry: Any, side: str, answer: Connection) -> None:
    """Judge one entry and send the verdict."""
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        verdict = ours(entry) if side == "ours" else judge(entry)
    except Exception as error:
        verdict = Verdict(reason=f"{type(error).__name__}: {error}"[:200])
    answer.send(dataclasses.asdict(verdict))


@dataclasses.dataclass
class Running:
    """A process at work."""

    entry: Any
    side: str
    process: Any
    answer: Connection
    start_s: float


def start(entry: Any, side: str) -> Running:
    """Start a process for one side of one entry."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(entry, side, sender), daemon=True)
    process.start()
    sender.close()
    return Running(entry, side, process, receiver, time.perf_counter())


def collect(job: Running) -> Row | None:
    """Return the verdict of a process that is done, has died or has taken too long, else None."""
    if job.answer.poll():
        try:
            verdict: Row | None = job.answer.recv()
        except EOFError:
            verdict = dataclasses.asdict(Verdict(reason="the process died"))
    elif time.perf_counter() - job.start_s > LIMIT_S:
        job.process.kill()
        verdict = dataclasses.asdict(Verdict(reason=f"not done after {LIMIT_S:.0f} s"))
    else:
        return None
    job.process.join(5)
    return verdict


def run(found: list[Any], rows: dict[str, Row]) -> None:
    """Judge every entry on both sides, a few at a time, into ``rows``."""
    waiting = [(entry, side) for entry in found for side in ("ours", "torch")][::-1]
    running: list[Running] = []
    while waiting or running:
        while waiting and len(running) < NUM_WORKERS:
            running.append(start(*waiting.pop()))
        wait([job.answer for job in running], timeout=1.0)
        for job in list(running):
            verdict = collect(job)
            if verdict is None:
                continue
            running.remove(job)
            rows[job.entry.name][job.side] = verdict
            told = "exact" if verdict["exact"] else verdict["reason"]
            print(f"{job.side:5} {job.entry.name:32} {told[:110]}", flush=True)
            RESULTS.write_text(json.dumps([*rows.values()], indent=1) + "\n")


def known() -> dict[str, Row]:
    """Return a row for every entry, with what an earlier run has found."""
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows: dict[str, Row] = {row["name"]: row for row in earlier}
    return {e.name: {**rows.get(e.name, {}), "name": e.name, "family": e.family} for e in entries()}


def table(rows: list[Row]) -> str:
    """Return the results as a page."""
    rows = [row for row in rows if {"ours", "torch"} <= set(row)]
    lines = [
        f"# Results: {len(rows)} architectures, two stages",
        "",
        f"torch {torch.__version__}, CPU, float64. See README.md for what is compared.",
        "",
        "| | captured | exact | wrong numbers without a message |",
        "|---|---|---|---|",
    ]
    for side, title in (("ours", "intandem"), ("torch", "torch.distributed.pipelining.pipeline")):
        found = [row[side] for row in rows]
        captured, exact = (sum(v[key] for v in found) for key in ("captured", "exact"))
        wrong = sum(v["error"] is not None and not v["exact"] for v in found)
        shares = [f"{n} ({100 * n / max(len(rows), 1):.0f}%)" for n in (captured, exact)]
        lines.append(f"| {title} | {shares[0]} | {shares[1]} | {wrong} |")
    lines += ["", "| model | family | intandem | torch |", "|---|---|---|---|"]
    for row in rows:
        told = ["exact" if row[s]["exact"] else _plain(row[s]["reason"]) for s in ("ours", "torch")]
        lines.append(f"| {row['name']} | {row['family']} | {told[0]} | {told[1]} |")
    return "\n".join(lines) + "\n"


def _plain(reason: str) -> str:
    return " ".join(reason.replace("|", "/").split())[:160]


def main() -> None:
    """Run what the command line names, or everything."""
    words = set(sys.argv[1:])
    rows = known()
    run([e for e in entries() if not words or words & {e.name, e.family}], rows)
    (HERE / "results.md").write_text(table([*rows.values()]), encoding="utf-8")


if __name__ == "__main__":
    main()
