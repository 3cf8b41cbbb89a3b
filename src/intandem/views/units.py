"""Numbers as people read them: three digits and a unit."""

from __future__ import annotations

import math


def duration(seconds: float, *, more_digits: int = 0) -> str:
    """Write seconds as ``850 µs``, ``12.3 ms`` or ``1.25 s``; with more digits where asked."""
    if seconds == 0:
        return "0 s"
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if abs(seconds) * factor < 999.5:
            return f"{_three_digits(seconds * factor, more_digits)} {unit}"
    return f"{_three_digits(seconds, more_digits)} s"


def count(number: float) -> str:
    """Write a count as ``999``, ``2.74 M`` or ``70.6 B``."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * factor:
            return f"{_three_digits(number / factor)} {unit}"
    return f"{number:g}" if number == round(number) else _three_digits(number)


def size(num_bytes: float) -> str:
    """Write bytes as ``512 B``, ``96.0 KiB`` or ``10.5 MiB``."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(num_bytes) >= 1024**power:
            return f"{_three_digits(num_bytes / 1024**power)} {unit}"
    return f"{num_bytes:.0f} B"


def share(ratio: float) -> str:
    """Write a ratio in [0, 1] as ``12.5 %``."""
    return f"{100 * ratio:.1f} %"


def time_tick(seconds: float, longest: float) -> str:
    """Write a round time on an axis that ends at ``longest``, in the unit that suits the axis."""
    units = ((1e6, "µs"), (1e3, "ms"))
    factor, unit = next(((f, u) for f, u in units if longest * f < 1e4), (1, "s"))
    return f"{seconds * factor:g} {unit}" if seconds else "0"


def ticks(low: float, high: float, *, about: int) -> tuple[float, ...]:
    """Return round values in [low, high], ``about`` that many, 1, 2 or 5 · 10^k apart."""
    if high <= low:
        return (low,)
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = min(
        (power * digit for digit in (1, 2, 5, 10)),
        key=lambda width: abs((high - low) / width - about),
    )
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def _three_digits(value: float, more: int = 0) -> str:
    decimals = max(0, 2 + more - math.floor(math.log10(abs(value)) + 1e-4))
    return f"{value:.{min(decimals, 2 + more)}f}"
