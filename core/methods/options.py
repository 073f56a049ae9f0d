"""Options of a method: checked against the JSON schemas that the method publishes, with errors that name the option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import EngineError

# Options about the shape of the plan, which every method that plans widths has in common.
PLAN_OPTIONS: dict[str, dict[str, Any]] = {
    "min_channels": {
        "type": "integer",
        "minimum": 1,
        "description": "Fewest channels that a layer keeps; by default 10 % of them, but at least 4.",
    },
    "round_to": {
        "type": "integer",
        "minimum": 1,
        "maximum": 64,
        "default": 1,
        "description": "Widths are multiples of this where a layer is wide enough; 8 is what hardware likes.",
    },
}


def checked_options(
    method: str, schemas: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """`options`, each valid under its schema. Raises EngineError with the JSON pointer of the first bad one."""
    for name in options:
        if name not in schemas:
            raise _bad(name, f"{method} has no such option; it has {', '.join(schemas) or 'none'}")
    return {name: _checked(name, schemas[name], value) for name, value in options.items()}


def _checked(name: str, schema: Mapping[str, Any], value: Any) -> int:
    """A whole number within the bounds of its schema; as in JSON Schema, 2.0 is one and true is none."""
    low, high, choices = schema.get("minimum"), schema.get("maximum"), schema.get("enum")
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if (
        not whole
        or (choices is not None and value not in choices)
        or (low is not None and value < low)
        or (high is not None and value > high)
    ):
        raise _bad(name, f"must be {_wanted(low, high, choices)}, not {value!r}")
    return int(value)


def _wanted(low: int | None, high: int | None, choices: list[int] | None) -> str:
    if choices is not None:
        return " or ".join(map(str, choices))
    if high is None:
        return f"a whole number of at least {low}"
    return f"a whole number from {low} to {high}"


def _bad(option: str, reason: str) -> EngineError:
    return EngineError("invalid_request", f"Method option {option!r}: {reason}.", param=f"/methods/0/{option}")
