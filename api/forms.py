"""The fields of the multipart forms: how each is read, and how the OpenAPI document shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter

from api.problems import Problem
from api.uploads import ReceivedFile
from api.validation import FieldParser, json_field, text_field, validate
from store.contract import Conversion, DisplayName, JobOptions, Normalization

MAX_DIMENSION = 1 << 20
Dimensions = Annotated[list[Annotated[int, Field(ge=1, le=MAX_DIMENSION)]], Field(min_length=1, max_length=8)]
NamedDimensions = Annotated[dict[str, Dimensions], Field(min_length=1, max_length=64)]
ArchitectureName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:\-/]*$", max_length=200)]
Scale = Annotated[float, Field(gt=0, description="What uint8 images are divided by; 255 unless given.")]

_dimensions: TypeAdapter[Any] = TypeAdapter(Dimensions)
_named_dimensions: TypeAdapter[Any] = TypeAdapter(NamedDimensions)
_any: TypeAdapter[Any] = TypeAdapter(Any)


def _input_shape(text: str) -> Any:
    value = json_field("input_shape", _any)(text)
    return validate(_named_dimensions if isinstance(value, dict) else _dimensions, value, "/input_shape")


MODEL_FILES = "A state_dict (.safetensors, .pt, .pth, .th), an .onnx or a .pt2 file."

MODEL_FIELDS: Mapping[str, FieldParser] = {
    "architecture": text_field("architecture", TypeAdapter(ArchitectureName)),
    "architecture_args": json_field("architecture_args", TypeAdapter(dict[str, Any])),
    "input_shape": _input_shape,
}
DATASET_FIELDS: Mapping[str, FieldParser] = {
    "normalization": json_field("normalization", TypeAdapter(Normalization)),
    "scale": json_field("scale", TypeAdapter(Scale, config=ConfigDict(allow_inf_nan=False))),
    "convert": json_field("convert", TypeAdapter(Conversion)),
}
NAME_FIELD: Mapping[str, FieldParser] = {"name": text_field("name", TypeAdapter(DisplayName))}
SPEC_FIELD: Mapping[str, FieldParser] = {"spec": json_field("spec", TypeAdapter(JobOptions))}

_FILE = {"type": "string", "format": "binary", "minLength": 1}
MODEL_PROPERTIES: dict[str, Any] = {
    "architecture": TypeAdapter(ArchitectureName).json_schema(),
    "architecture_args": {"type": "object", "description": "Arguments of the architecture, as JSON."},
    "input_shape": {
        "description": "Shape of one input without the batch, as JSON: a list, or a list for each named input.",
        "anyOf": [_dimensions.json_schema(), _named_dimensions.json_schema()],
    },
}
DATASET_PROPERTIES: dict[str, Any] = {
    "normalization": {"$ref": "#/components/schemas/Normalization"},
    "scale": TypeAdapter(Scale).json_schema(),
    "convert": {"$ref": "#/components/schemas/Conversion"},
}
NAME_PROPERTY: dict[str, Any] = {"name": TypeAdapter(DisplayName).json_schema()}
SPEC_PROPERTY: dict[str, Any] = {"spec": {"$ref": "#/components/schemas/JobOptions"}}
_JSON_PARTS = ("architecture_args", "input_shape", "normalization", "scale", "convert", "spec")


def form_schema(*, files: Mapping[str, str], required: list[str], properties: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI media type object of a form; `files` maps the file parts to what they are."""
    parts = {**{name: {**_FILE, "description": text} for name, text in files.items()}, **properties}
    return {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": parts, "required": required, "additionalProperties": False},
            "encoding": {name: {"contentType": "application/json"} for name in _JSON_PARTS if name in parts},
        }
    }


def check_fields_used(fields: Mapping[str, Any], dataset: ReceivedFile | None) -> None:
    """Fields of a dataset file without that file would be ignored silently; say so instead."""
    stray = next((name for name in DATASET_FIELDS if name in fields), None)
    if dataset is None and stray is not None:
        raise Problem.at(
            f"/{stray}", "dataset_required", f"{stray!r} describes an uploaded dataset, and there is none."
        )


def stem(filename: str) -> str:
    """The default name of an upload."""
    return filename.split(".", 1)[0].strip()[:200] or filename[:200]
