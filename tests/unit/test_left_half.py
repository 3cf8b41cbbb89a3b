"""The pure half: what it imports."""

import subprocess
import sys

PURE = ["ir", "costs", "machine", "schedules", "rules", "lowering", "simulator", "partition"]
PURE += ["planner", "views.text", "views.svg"]


def test_no_torch_needed():
    """Planning, checking and drawing load neither torch nor numpy."""
    imports = "; ".join(f"import intandem.{name}" for name in PURE)
    code = f"import sys; {imports}; print(sorted({{'torch', 'numpy'}} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"
