"""How both command lines end: `pennyweight` and `pennyweightd compress` share these, so that pipelines can swap them."""

from __future__ import annotations

EXIT_USAGE, EXIT_UNMET, EXIT_FAILED, EXIT_INTERRUPTED = 2, 3, 4, 130

_UNMET_CODES = ("target_infeasible", "target_unmet", "accuracy_floor")
_USAGE_CODES = ("invalid_request",)


def exit_code(error_code: str) -> int:
    """The exit code of a job that failed with this error code: an unmet budget is told apart from a failure."""
    if error_code in _USAGE_CODES:
        return EXIT_USAGE
    return EXIT_UNMET if error_code in _UNMET_CODES else EXIT_FAILED
