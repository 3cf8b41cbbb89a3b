"""Code of ``examples/`` that the library runs, found in a checkout or in an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from intandem.errors import RunError

if TYPE_CHECKING:
    from types import ModuleType


def load_example(name: str) -> ModuleType:
    """Import ``examples/<name>.py`` from beside the package (a checkout) or from inside it.

    Raises:
        RunError: if it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "examples", package.parents[1] / "examples")
    path = next((p for folder in places if (p := folder / f"{name}.py").is_file()), None)
    spec = path and importlib.util.spec_from_file_location(f"intandem_example_{name}", path)
    if not spec or not spec.loader:
        msg = f"{name}.py is not in {' or '.join(map(str, places))}; is the installation complete?"
        raise RunError(msg)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
