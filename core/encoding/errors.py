"""Everything that can be wrong with a `.pwt` file, as one closed list."""

from __future__ import annotations

from enum import StrEnum


class PwtFault(StrEnum):
    """One line each; docs/pwt.md says which check finds which."""

    not_pwt = "not_pwt"  # the first eight bytes are not the magic
    unsupported_version = "unsupported_version"  # a version that this reader does not know
    truncated = "truncated"  # shorter than the file says of itself
    trailing_bytes = "trailing_bytes"  # longer than the file says of itself
    header_too_large = "header_too_large"  # the header is above its cap, packed or unpacked
    header_corrupt = "header_corrupt"  # wrong checksum, or does not unpack to its length
    header_invalid = "header_invalid"  # not the JSON that it must be; a field missing, unknown or of a wrong type
    bad_name = "bad_name"  # a tensor's name is empty, too long, given twice, or has control characters
    bad_shape = "bad_shape"  # a negative size, too many axes
    unknown_type = "unknown_type"  # an element type that is not on the list
    unknown_format = "unknown_format"  # a coding that is not on the list
    too_many_tensors = "too_many_tensors"
    too_large = "too_large"  # unpacks to more bytes than the reader allows
    bad_codebook = "bad_codebook"  # count, order, zero, or values that are not finite
    bad_padding = "bad_padding"  # bytes between payloads that are not zero
    checksum_mismatch = "checksum_mismatch"  # a payload's bytes are not those that were written
    bad_extent = "bad_extent"  # the parts of a payload do not fill it exactly
    bad_code = "bad_code"  # Huffman lengths that are no complete prefix code
    bad_model = "bad_model"  # rANS parameters or frequencies that are none
    bad_stream = "bad_stream"  # decoding does not end where it must
    bad_index = "bad_index"  # a row, column or level that does not exist
    bad_skeleton = "bad_skeleton"  # the ONNX model without weights is none, or takes other weights than there are


class PwtError(ValueError):
    """A `.pwt` file that cannot be read. `code` is what is wrong, `where` the tensor or the part of the file."""

    def __init__(self, code: PwtFault, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail} [{code.value}]")
        self.code = code
        self.where = where
