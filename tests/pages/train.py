"""Writes docs/train.md: ``python -m pages.train``, run from ``tests/``.

The keys and what they mean are those of ``intandem.train.config``.
"""

import ast
import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

from intandem.train import config as source
from intandem.train.config import Config, GroupConfig
from intandem.train.config_file import expected

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "train.md"
EXAMPLES = ROOT / "examples"


def docs():
    """What follows each field in the source, by class and field."""
    found = {}
    for node in ast.parse(inspect.getsource(source)).body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    words = " ".join(ast.literal_eval(text.value).split())
                    found[node.name, field.target.id] = words
    return found


def explained(kind=Config, prefix=""):
    """Key, what it means, and its type and default, of every key."""
    hints = get_type_hints(kind, include_extras=True)
    told, found = docs(), []
    for each in fields(kind):
        inner = get_type_hints(kind)[each.name]
        if is_dataclass(inner):
            found += explained(inner, f"{prefix}{each.name}.")
        else:
            about = told.get((kind.__name__, each.name), "")
            found.append((f"{prefix}{each.name}", about, (expected(hints[each.name]), each)))
    return found


def default_of(field):
    """As TOML has it; nothing for None and what cannot be left out."""
    from intandem.train.config_file import _value

    value = field.default
    if value is None or not isinstance(value, (str, int, float, bool, tuple)):
        return ""
    if value and isinstance(value, tuple) and is_dataclass(value[0]):
        return "below"
    return f"`{_value(list(value) if isinstance(value, tuple) else value)}`"


def table(kind, prefix=""):
    """Lines of a Markdown table of a class's own keys."""
    return lines_of(explained(kind, prefix))


def lines_of(found):
    """Lines of a Markdown table of what ``explained`` returns."""
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for key, about, (words, field) in found:
        lines.append(f"| `{key}` | {default_of(field)} | {words[0].upper()}{words[1:]}. {about} |")
    return "\n".join(lines)


def tables():
    """A section for each table of the configuration."""
    hints, parts = get_type_hints(Config), []
    own = [e for e in explained() if "." not in e[0]]
    parts.append("### The run\n\n" + lines_of(own))
    for each in fields(Config):
        kind = hints[each.name]
        if is_dataclass(kind):
            about = inspect.cleandoc(kind.__doc__)
            parts.append(f"### `[{each.name}]`\n\n{about}\n\n{table(kind)}")
        if each.name == "optimizer":
            about = inspect.cleandoc(GroupConfig.__doc__)
            parts.append(f"### `[[optimizer.groups]]`\n\n{about}\n\n{table(GroupConfig)}")
    return "\n\n".join(parts)


def render():
    """Return the page."""
    template = (Path(__file__).parent / "train.md.in").read_text(encoding="utf-8")
    gpt = (EXAMPLES / "gpt.toml").read_text(encoding="utf-8").strip()
    return template.replace("{gpt}", gpt).replace("{tables}", tables())


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
