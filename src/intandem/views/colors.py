"""How drawings look: the colours of the kinds of action, and the style rules all of them share.

The colours are Okabe and Ito's, which people with any colour vision tell apart; boxes carry
letters as well. Each kind has a hue of its own, so that a darker shade, which says that an action
is of a later pass of its rank, never looks like another kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

LIGHT_INK, DARK_INK = "#ffffff", "#111111"

SHADES = (1.0, 0.74, 0.56, 0.44, 0.36, 0.3, 0.25, 0.21)
"""Share of a colour's light that each pass keeps; passes after the last look like it."""


@dataclass(frozen=True, slots=True)
class Look:
    """Colour of a box, and what the letter in it stands for."""

    color: str
    name: str


LOOKS = {
    "F": Look("#0072B2", "forward"),
    "B": Look("#009E73", "backward"),
    "I": Look("#CC79A7", "backward for inputs"),
    "W": Look("#E69F00", "backward for weights"),
    "O": Look("#D55E00", "optimizer"),
}
"""By letter: the kinds of action, and O for an optimizer's update."""


def shade(color: str, index: int) -> str:
    """Return ``color``, written ``#rrggbb``, as actions of pass ``index`` have it."""
    share = SHADES[min(index, len(SHADES) - 1)]
    channels = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(share * channel):02X}" for channel in channels)


def ink(color: str) -> str:
    """Return the colour of letters that are read best on ``color``."""
    red, green, blue = (_linear(int(color[at : at + 2], 16) / 255) for at in (1, 3, 5))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return DARK_INK if luminance > 0.2 else LIGHT_INK


def shade_class(index: int) -> str:
    """CSS class of actions of pass ``index``; none for the first."""
    return f" k{min(index, len(SHADES) - 1)}" if index else ""


def drawing_style(num_passes: int = len(SHADES)) -> str:
    """CSS of what is inside a timeline's SVG, on a page or in a file of its own.

    It uses the variables ``--page --ink --quiet --rule --idle``, which the surroundings set.

    Args:
        num_passes: that have a shade; by default as many as there are shades.
    """
    rules = [(files("intandem.views") / "drawing.css").read_text(encoding="utf-8")]
    for letter, look in LOOKS.items():
        for index in range(min(num_passes, len(SHADES))):
            place = f"{letter}{shade_class(index).replace(' ', '.')}"
            color = shade(look.color, index)
            rules.append(f"svg .{place} rect {{ fill: {color}; }}\n")
            rules.append(f"svg .box.{place} text {{ fill: {ink(color)}; }}\n")
    return "".join(rules)


def _linear(channel: float) -> float:
    """Light of an sRGB channel, as contrast is computed from it."""
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
