"""Checked reading of the JSON in an archive: every access says what was expected, and where."""

from __future__ import annotations

import json
from typing import Any

from core.intake.refusals import invalid, too_large

MAX_JSON_BYTES = 64 << 20
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
LARGEST = 2**63 - 1


def parse(data: memoryview, what: str) -> dict[str, Any]:
    """The object in an entry. Raises EngineError: too_large, invalid_model."""
    if len(data) > MAX_JSON_BYTES:
        raise too_large(f"{what} has {len(data)} bytes; at most {MAX_JSON_BYTES} are read.")
    try:
        document = json.loads(bytes(data).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{what} is not valid JSON: {str(error)[:200]}.") from error
    if not isinstance(document, dict):
        raise invalid(f"{what} is not a JSON object.")
    return document


def take(mapping: object, name: str, kind: type, what: str) -> Any:
    """A field of a kind. Raises EngineError("invalid_model") where it is missing or another thing."""
    value = mapping.get(name) if isinstance(mapping, dict) else None
    is_kind = type(value) is kind
    if not is_kind or (kind is int and abs(value) > LARGEST):
        raise invalid(f"{what} of the .pt2 file has no field {name!r} that is {_KINDS[kind]}; the file is damaged.")
    return value


def union(value: object, what: str) -> tuple[str, Any]:
    """The one field of a tagged union: `{"as_int": 3}` → ("as_int", 3)."""
    if not isinstance(value, dict) or len(value) != 1:
        raise invalid(f"{what} of the .pt2 file is not one value with its type; the file is damaged.")
    return next(iter(value.items()))


def whole(value: object, what: str) -> int:
    """A whole number that PyTorch can hold."""
    if type(value) is not int or abs(value) > LARGEST:
        raise invalid(f"{what} of the .pt2 file has {str(value)[:40]!r} where a whole number belongs.")
    return value


def number(value: object, what: str) -> float:
    """A floating-point number; the infinite ones are written as words."""
    if isinstance(value, str) and value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(f"{what} of the .pt2 file has {str(value)[:40]!r} where a number belongs.")
    return float(whole(value, what)) if isinstance(value, int) else value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result
