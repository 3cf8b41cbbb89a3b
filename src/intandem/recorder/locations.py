"""Where in the user's code something happens."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_INTERNAL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def user_location(*also_ours: str) -> str:
    """Return ``file:line`` of the innermost frame that is neither torch's nor ours.

    Args:
        also_ours: paths of files, besides the recorder's, whose frames are passed over.
    """
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith((*_INTERNAL, *also_ours, "<")) and "contextlib" not in path:
            return f"{path}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "an unknown line"
