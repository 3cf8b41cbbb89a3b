"""The page on diagnostics and the rules name the same codes."""

import re
from pathlib import Path

from intandem.rules import memory_rules, program_rules, schedule_rules

ROOT = Path(__file__).parents[2]


def test_every_code_is_documented():
    """Codes of the rules' docstrings, of their source, and of the page."""
    page = (ROOT / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| ([A-Z]\d{3}) \|", page, re.M))
    drawn = {
        code
        for module in (schedule_rules, memory_rules, program_rules)
        for code in re.findall(r"^([A-Z]\d{3})  ", module.__doc__, re.M)
    }
    sources = (ROOT / "src" / "intandem" / "rules").glob("*.py")
    raised = {c for f in sources for c in re.findall(r'Diagnostic\("(\w+)"', f.read_text())}

    assert listed == drawn == raised
