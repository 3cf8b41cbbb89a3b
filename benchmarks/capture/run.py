"""Time `capture`: the zoo's small models, and an 80-layer, 70B-parameter Llama on meta.

    PYTHONPATH=src:tests python benchmarks/capture/run.py [zoo | large | NAME ...]

Times are processor seconds of this thread, the best of a few rounds after a first one that pays for
imports and compiled patterns; `run` is the model's own forward in the same mode, for comparison.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

import intandem as it
from intandem.recorder.capture import record, without_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ROUNDS = 5


def best_s(function: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Least processor seconds of ``function``, called once before."""
    function()
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        function()
        found.append(time.thread_time() - began)
    return min(found)


def zoo_row(entry: Any) -> dict[str, Any] | None:
    """Capture and forward times of one entry in milliseconds; None where it is refused."""
    from zoo.examine import first_microbatch

    sample = entry.build()
    part, bind = first_microbatch(entry, sample)
    arguments = bind(part)

    def run() -> None:
        with without_cache(sample.model):
            sample.model(*arguments.args, **arguments.kwargs)

    try:
        graph = record(sample.model, part, bind).graph
    except it.PipelineError:
        return None
    capture_s = best_s(lambda: record(sample.model, part, bind))
    return {
        "name": entry.name,
        "capture_ms": round(1e3 * capture_s, 1),
        "run_ms": round(1e3 * best_s(run), 1),
        "calls": len(graph.calls),
    }


def zoo(names: Collection[str]) -> None:
    """Print a row for every entry, then a summary."""
    from zoo.catalogue import entries

    rows = []
    for entry in entries():
        if names and not {entry.name, entry.family} & set(names):
            continue
        row = zoo_row(entry)
        if row is not None:
            rows.append(row)
            print(
                f"{row['name']:28} {row['capture_ms']:7.1f} ms  forward {row['run_ms']:7.1f} ms"
                f"  {row['calls']:4} calls",
                flush=True,
            )
    times = [row["capture_ms"] for row in rows]
    worst = max(rows, key=lambda row: row["capture_ms"])
    print(
        json.dumps(
            {
                "models": len(rows),
                "median_ms": median(times),
                "worst_ms": worst["capture_ms"],
                "worst": worst["name"],
                "over_50_ms": [row["name"] for row in rows if row["capture_ms"] > 50],
            }
        )
    )


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def large() -> None:
    """Build and capture an 80-layer Llama with 70 billion parameters on meta; print figures."""
    import transformers

    configuration = transformers.LlamaConfig(
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        vocab_size=128256,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(configuration)
    ids = torch.randint(0, 128256, (2, 128))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    before = resident_bytes()
    began, began_cpu = time.perf_counter(), time.thread_time()
    graph = it.capture(model, batch)
    first = time.perf_counter() - began, time.thread_time() - began_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "parameters": sum(p.numel() for p in model.parameters()),
                "blocks": sum(1 for call in graph.calls if call.target is None),
                "first_capture_wall_s": round(first[0], 2),
                "first_capture_cpu_s": round(first[1], 2),
                "next_capture_cpu_s": round(best_s(lambda: it.capture(model, batch), rounds=3), 2),
                "grown_by_mb": round((peak - before) / 1e6),
                "peak_of_process_mb": round(peak / 1e6),
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if words != ["zoo"]:
        if not words or "large" in words:
            large()
        words = [word for word in words if word != "large"]
    if not sys.argv[1:] or words:
        zoo([word for word in words if word != "zoo"])
