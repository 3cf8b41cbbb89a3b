"""What ``import intandem`` offers, and what it costs."""

import subprocess
import sys

import intandem as it

PINNED = """
Action ActionKind CostModel Job LossSum Machine Options Pipeline PipelineError Placement Program
Schedule Timeline WholeBatchLoss build_schedule capture check launch search simulate verify
""".split()


def test_pinned_names():
    """The public names are these; a new one is a decision, and there are 24 at most."""
    assert sorted(it.__all__) == sorted(PINNED)
    assert dir(it) == sorted(PINNED)
    assert len(PINNED) <= 24
    for name in PINNED:
        assert getattr(it, name).__name__ == name


def test_no_module_has_the_name_of_a_function():
    """Importing a module cannot hide a public function of the same name."""
    code = "import intandem, sys\nfor n in intandem.__all__: getattr(intandem, n)\n"
    code += "print([m for m in sys.modules if m.startswith('intandem.')])"
    modules = run(code)
    for name in PINNED:
        assert f"'intandem.{name}'" not in modules


def test_unknown_name():
    """A name that is not there is an AttributeError, as for any module."""
    assert (
        run("import intandem\ntry: intandem.Pipline\nexcept AttributeError as e: print(e)")
        == "module 'intandem' has no attribute 'Pipline'"
    )


def test_importing_needs_no_torch():
    """Neither the package nor schedules, verification and simulation import torch."""
    names = "build_schedule search simulate verify Schedule CostModel Machine PipelineError"
    code = f"import sys, intandem\nfor n in '{names}'.split(): getattr(intandem, n)\n"
    assert run(code + "print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False"


def run(code):
    """Run ``code`` in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()
