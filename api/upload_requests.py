"""What is said of a file that comes in parts: when it is announced, and when it is complete."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from api.forms import ArchitectureName, Dimensions, NamedDimensions, Scale
from store.contract import Conversion, DisplayName, Normalization, Request
from store.uploads import Purpose

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MODEL_ONLY = ("architecture", "architecture_args", "input_shape")
DATASET_ONLY = ("normalization", "scale", "convert")


class UploadRequest(Request):
    """A file to come, and what it is: the fields of the form that would bring it whole."""

    filename: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    size: Annotated[int, Field(ge=1, lt=2**63, description="Bytes.")]
    sha256: Annotated[Sha256 | None, Field(description="Of the whole file; checked when it is complete.")] = None
    purpose: Purpose
    name: DisplayName | None = None
    architecture: ArchitectureName | None = None
    architecture_args: dict[str, Any] | None = None
    input_shape: Dimensions | NamedDimensions | None = None
    normalization: Normalization | None = None
    scale: Scale | None = None
    convert: Conversion | None = None

    def foreign_field(self) -> str | None:
        """A field that is given and belongs to the other purpose."""
        others = MODEL_ONLY if self.purpose == "dataset" else DATASET_ONLY
        return next((name for name in others if getattr(self, name) is not None), None)


class SentPart(Request):
    number: Annotated[int, Field(ge=1)]
    etag: Annotated[str, StringConstraints(max_length=200)]


class UploadCompletion(Request):
    """What the client has sent; without `parts`, whatever is there."""

    parts: Annotated[list[SentPart], Field(max_length=10_000)] | None = None
