"""Everything that can be wrong with a `.pwt` file, as one closed list (docs/pwt.md)."""

from __future__ import annotations

from enum import StrEnum


class PwtFault(StrEnum):
    """What is wrong."""

    not_pwt = "not_pwt"
    unsupported_version = "unsupported_version"
    truncated = "truncated"
    trailing_bytes = "trailing_bytes"
    header_too_large = "header_too_large"
    header_corrupt = "header_corrupt"
    header_invalid = "header_invalid"
    bad_name = "bad_name"
    bad_shape = "bad_shape"
    unknown_type = "unknown_type"
    unknown_format = "unknown_format"
    too_many_tensors = "too_many_tensors"
    too_large = "too_large"
    bad_codebook = "bad_codebook"
    bad_padding = "bad_padding"
    checksum_mismatch = "checksum_mismatch"
    bad_extent = "bad_extent"
    bad_code = "bad_code"
    bad_model = "bad_model"
    bad_stream = "bad_stream"
    bad_index = "bad_index"
    bad_skeleton = "bad_skeleton"


class PwtError(ValueError):
    """A `.pwt` file that cannot be read. `code` is what is wrong, `where` the tensor or the part of the file."""

    def __init__(self, code: PwtFault, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail} [{code.value}]")
        self.code = code
        self.where = where
        self.detail = detail


def require(holds: object, code: PwtFault, where: str, detail: str) -> None:
    """Raises where something that the format promises does not hold."""
    if not holds:
        raise PwtError(code, where, detail)
