"""The one exception that the engine raises for anything a user can cause or must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
# torch's allocators, the C library, C++, and cuBLAS, cuDNN and their like say it in words only.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "alloc_failed",
    "allocation_failed",
)


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, on the CPU or on a GPU, by whatever asked for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(phrase in said for phrase in _OUT_OF_MEMORY)


@contextmanager
def memory_as_refusal(what: str) -> Iterator[None]:
    """For what the run can do without: too little memory for `what` is an EngineError, as its other refusals are."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise EngineError("out_of_memory", f"There is too little memory for {what}.") from error
