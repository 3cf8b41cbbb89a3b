"""What a run ran on, for its report."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from intandem.views.units import duration

if TYPE_CHECKING:
    from intandem.pipeline.home import Home

_PROCESSORS = Path("/proc/cpuinfo")


def environment_of(home: Home, clock_error_s: float) -> tuple[tuple[str, str], ...]:
    """Return (what, value) of versions, machine and threads.

    Args:
        home: of this process's ranks.
        clock_error_s: most that clocks of ranks may be apart; 0 where they share one.
    """
    on_gpu = home.device.type == "cuda"
    device = torch.cuda.get_device_name(home.device) if on_gpu else _processor()
    clocks = f"within {duration(clock_error_s)} of each other" if clock_error_s else "shared"
    return (
        ("torch", torch.__version__),
        ("python", platform.python_version()),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("device", device),
        ("cores", str(os.cpu_count())),
        ("threads per rank", str(home.threads_per_rank)),
        ("ranks are", "threads" if home.membership is None else "processes"),
        ("clocks", clocks),
    )


def _processor() -> str:
    """The processor's name as Linux has it; elsewhere what Python says."""
    lines = _PROCESSORS.read_text(encoding="utf-8").splitlines() if _PROCESSORS.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
