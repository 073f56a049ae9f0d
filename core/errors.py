"""The one exception that the engine raises for anything a user can cause or must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

ErrorCode = Literal[
    "invalid_model",
    "unsafe_model",
    "unsupported_format",
    "architecture_mismatch",
    "unknown_architecture",
    "shape_mismatch",
    "too_large",
    "dataset_invalid",
    "target_infeasible",
    "target_unmet",
    "accuracy_floor",
    "equivalence_failed",
    "out_of_memory",
    "invalid_request",
    "internal",
]


class EngineError(Exception):
    """A failure with a stable code.

    `message` says what, where and what to do; `param` is a JSON pointer into the request where one field is to blame;
    `details` is JSON-serialisable and machine-readable (e.g. `{"smallest": {...}}` of `target_infeasible`).
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def first_line(error: BaseException, longest: int = 200) -> str:
    """What another library's exception says, in a line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:longest]
