"""Reading a method's options with errors that name the option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import EngineError


def option_error(option: str, reason: str) -> EngineError:
    """A bad option of the (single) method of a request."""
    return EngineError("internal", f"Method option {option!r}: {reason}.", param=f"/methods/0/{option}")


def whole_number(options: Mapping[str, Any], name: str, *, default: Any, low: int, high: int | None) -> Any:
    """An integer option within its bounds, or the default where it is left out."""
    value = options.get(name, default)
    if value is default:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise option_error(name, f"must be a whole number {bounds}, not {value!r}")
    return value
