"""``docs/capture.md``: its examples run, and the messages it lists are those of the code."""

import ast
import re
from pathlib import Path

import pytest
import torch

import intandem.recorder

DOC = Path(__file__).parents[2] / "docs" / "capture.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples(number, tmp_path, monkeypatch):
    """Each example runs by itself; what it asserts holds."""
    torch.manual_seed(0)
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[number], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], str(script), "exec"), {"__name__": "example"})


def texts():
    """Every message in the recorder, with … for what is filled in."""
    found = []
    for path in Path(intandem.recorder.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_messages():
    """What the first column says is what the code says."""
    lines = DOC.read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    messages = [row for row in rows if row != "message"]
    assert len(messages) == 18
    known = texts()
    assert [m for m in messages if not any(m in text for text in known)] == []
