"""Checks `architecture_args` against an architecture's JSON schema (integers and lists of integers)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from core.errors import EngineError


def check_args(architecture: str, schema: Mapping[str, Any], args: Mapping[str, Any]) -> None:
    """Raises EngineError("architecture_mismatch") naming the argument, its limits and what was given."""
    properties = schema["properties"]
    for name, value in args.items():
        if name not in properties:
            nearest = difflib.get_close_matches(str(name), properties, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(properties) or 'none'}."
            raise _wrong(architecture, str(name), f"{architecture} has no argument {str(name)[:80]!r}; {hint}")
        _check_value(architecture, name, properties[name], value)


def integer_in(schema: Mapping[str, Any], value: object) -> bool:
    """Whether `value` is an integer within the schema's limits."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    if not schema["minimum"] <= value <= schema["maximum"]:
        return False
    return "enum" not in schema or value in schema["enum"]


def _check_value(architecture: str, name: str, schema: Mapping[str, Any], value: object) -> None:
    if schema["type"] == "array":
        items = schema["items"]
        valid = isinstance(value, (list, tuple)) and len(value) <= schema["maxItems"]
        valid = valid and all(integer_in(items, item) for item in value)
        wanted = f"a list of integers from {items['minimum']} to {items['maximum']}"
    else:
        valid = integer_in(schema, value)
        wanted = f"an integer from {schema['minimum']} to {schema['maximum']}"
    if not valid:
        raise _wrong(architecture, name, f"{name} of {architecture} must be {wanted}, got {repr(value)[:80]}.")


def _wrong(architecture: str, name: str, message: str) -> EngineError:
    return EngineError(
        "architecture_mismatch",
        message,
        param=f"/architecture_args/{name[:80]}",
        details={"architecture": architecture},
    )
