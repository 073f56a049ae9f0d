"""The operators that are read, as a page: written from the table of handlers, so that it cannot say anything else.

python -m core.intake.onnx.coverage > docs/onnx_operators.md
"""

from __future__ import annotations

import sys

import onnx

from core.intake.onnx.handlers import HANDLERS
from core.intake.onnx.refusal import FIRST_OPSET, LAST_OPSET
from core.intake.onnx.tail import TAIL_OPERATORS

_INTRODUCTION = f"""\
# ONNX operators that are read

Written by `python -m core.intake.onnx.coverage > docs/onnx_operators.md`.

Graphs of opset {FIRST_OPSET} to {LAST_OPSET} in the standard domain, with float weights. "Definitions" are the opsets within that range in which the
operator was defined anew; each is read as its own opset defines it. A use that has no exact form is refused with the
operator, the node and the attribute. What was imported agrees with ONNX Runtime within 1e-4 (relative), or, where a deep
network magnifies rounding beyond that, within twice what float32 does to the network itself; else it is refused. What was
measured so is [a page of its own](onnx_roundtrip.md). Half precision becomes float32. Axes that the file leaves open stay
open where the network follows them.
"""
_TAIL = """\
## Kept as they are, behind the network

What has no result per image (and everything after it) stays ONNX: it is put back behind the smaller network, unchanged, and
the values that it reads are frozen. `NonMaxSuppression` and its like are always kept so; every other operator is where it
mixes the images of a batch. A layer with weights behind such a node is refused. An output that has its images along another
axis than the first (`[time, batch, classes]`) is turned behind the network. `model.pt2` and `model.py` hold what is in front;
the job's result names what they lack, under `notices`.
"""


def page() -> str:
    """The page as Markdown."""
    groups: dict[str, list[str]] = {}
    for operator, handler in HANDLERS.items():
        description = sys.modules[handler.__module__].__doc__.splitlines()[0]
        groups.setdefault(description, []).append(operator)
    lines = [_INTRODUCTION, f"{len(HANDLERS)} operators are read into the network.\n"]
    for description, operators in groups.items():
        lines += [f"## {description.rstrip('.').partition('. ')[0]}\n", "| operator | definitions |", "|---|---|"]
        lines += [f"| {operator} | {_definitions(operator)} |" for operator in sorted(operators)]
        lines.append("")
    lines += [_TAIL, ", ".join(f"`{operator}`" for operator in sorted(TAIL_OPERATORS)) + "."]
    return "\n".join(lines) + "\n"


def _definitions(operator: str) -> str:
    """The opsets that defined it, from the one that holds at the first that is read."""
    versions = sorted(
        {schema.since_version for schema in _SCHEMAS.get(operator, ()) if schema.since_version <= LAST_OPSET}
    )
    older = [version for version in versions if version <= FIRST_OPSET]
    return ", ".join(map(str, older[-1:] + [version for version in versions if version > FIRST_OPSET]))


def _schemas() -> dict[str, list[onnx.defs.OpSchema]]:
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return found


_SCHEMAS = _schemas()

if __name__ == "__main__":
    sys.stdout.write(page())
