"""Writes the table of settings in `docs/operating.md` from `store/settings.py`, whose docstrings are its words.

python -m docs.settings_table
"""

from __future__ import annotations

import ast
import inspect
import itertools
from pathlib import Path

from pydantic_core import PydanticUndefined

from store import settings
from store.settings import Settings

PAGE = Path(__file__).parent / "operating.md"
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->\n"


def words() -> dict[str, str]:
    """The docstring of each setting that has one."""
    tree = ast.parse(inspect.getsource(settings))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    return {
        field.target.id: " ".join(ast.literal_eval(text.value).split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def table() -> str:
    """One row per setting, in the order of the code."""
    said = words()
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default_factory() if field.default is PydanticUndefined else field.default
        shown = ",".join(map(str, default)) if isinstance(default, list) else default
        shown = "" if shown in (None, "") else f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"
        rows.append(f"| `PENNYWEIGHT_{name.upper()}` | {shown} | {said[name].replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def written() -> str:
    """The page with the table as it should be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written())
