"""Breaks that are kept as patches can be made in the code as it is."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATCHES = sorted((ROOT / "tests" / "mutants").glob("*.patch"))


@pytest.mark.skipif(
    shutil.which("git") is None or not (ROOT / ".git").exists(), reason="needs a git repository"
)
def test_every_patch_applies():
    """One that does not is made again where its line is now; see tests/mutants/run.py."""
    refused = [
        patch.stem
        for patch in PATCHES
        if subprocess.run(
            ["git", "apply", "--check", patch], cwd=ROOT, capture_output=True, check=False
        ).returncode
    ]
    assert PATCHES
    assert refused == []


def test_every_patch_names_a_test_that_is_there():
    """By its file, and the function where it names one."""
    assert [patch.stem for patch in PATCHES if not names_a_test(patch.read_text())] == []


def names_a_test(text):
    named = re.search(r"^# test: (tests/\S+\.py)(?:::(?:\w+::)*(\w+))?", text, re.MULTILINE)
    if named is None or not (ROOT / named[1]).exists():
        return False
    return f"def {named[2] or 'test_'}" in (ROOT / named[1]).read_text()
