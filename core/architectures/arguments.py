"""Checks `architecture_args` against an architecture's JSON schema, in words that say what is wrong."""

from __future__ import annotations

import difflib
import math
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
        if not _valid(properties[name], value):
            wanted = _wanted(properties[name])
            given = repr(value)[:80]
            raise _wrong(architecture, name, f"{name} of {architecture} must be {wanted}, got {given}.")


def integer_in(schema: Mapping[str, Any], value: object) -> bool:
    """Whether `value` is an integer within the schema's limits."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    if not schema["minimum"] <= value <= schema["maximum"]:
        return False
    return "enum" not in schema or value in schema["enum"]


def _valid(schema: Mapping[str, Any], value: object) -> bool:
    match schema["type"]:
        case "integer":
            return integer_in(schema, value)
        case "number":
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            return number and schema["minimum"] <= value <= schema["maximum"]
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and value in schema["enum"]
        case "array":
            whole = isinstance(value, (list, tuple)) and schema.get("minItems", 0) <= len(value) <= schema["maxItems"]
            return whole and all(_valid(schema["items"], item) for item in value)
        case other:
            raise ValueError(f"a schema of type {other!r} cannot be checked")


def _wanted(schema: Mapping[str, Any]) -> str:
    match schema["type"]:
        case "integer" if "enum" in schema:
            return f"one of {', '.join(map(str, schema['enum']))}"
        case "integer":
            return f"an integer from {schema['minimum']} to {schema['maximum']}"
        case "number":
            return f"a number from {schema['minimum']} to {schema['maximum']}"
        case "boolean":
            return "true or false"
        case "string":
            return f"one of {', '.join(schema['enum'])}"
        case "array":
            items, exact = schema["items"], schema.get("minItems") == schema["maxItems"]
            listing = f"a list of {schema['maxItems']} " if exact else "a list of "
            if items["type"] == "integer":
                return f"{listing}integers from {items['minimum']} to {items['maximum']}"
            return f"{listing}{items['type']}s"
        case other:
            raise ValueError(f"a schema of type {other!r} cannot be described")


def _wrong(architecture: str, name: str, message: str) -> EngineError:
    return EngineError(
        "architecture_mismatch",
        message,
        param=f"/architecture_args/{name[:80]}",
        details={"architecture": architecture},
    )
