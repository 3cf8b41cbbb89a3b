"""How drawings look: the colours of the kinds of action, and the style rules all of them share.

The colours are Okabe and Ito's, which people with any colour vision tell apart; boxes carry
letters as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Look:
    """Colour of a box, of the letters in it, and what the letter stands for."""

    color: str
    ink: str
    name: str


LOOKS = {
    "F": Look("#0072B2", "#ffffff", "forward"),
    "B": Look("#009E73", "#111111", "backward"),
    "I": Look("#56B4E9", "#111111", "backward for inputs"),
    "W": Look("#E69F00", "#111111", "backward for weights"),
    "O": Look("#CC79A7", "#111111", "optimizer"),
}
"""By letter: the kinds of action, and O for an optimizer's update."""


def drawing_style() -> str:
    """CSS of what is inside a timeline's SVG, on a page or in a file of its own.

    It uses the variables ``--page --ink --quiet --rule --idle``, which the surroundings set.
    """
    rules = [(files("intandem.views") / "drawing.css").read_text(encoding="utf-8")]
    for letter, look in LOOKS.items():
        rules.append(f"svg .{letter} rect {{ fill: {look.color}; }}\n")
        rules.append(f"svg .box.{letter} text {{ fill: {look.ink}; }}\n")
    return "".join(rules)
