"""Checking what a request says: JSON as JSON, values against their types, and names against the workers' catalogue."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError as SchemaError
from pydantic import TypeAdapter, ValidationError

from api.problems import FieldError, Problem, escape, field_errors, invalid
from store.contract import ArchitectureInfo, Catalogue, JobOptions

T = TypeVar("T")

FieldParser = Callable[[str], Any]
"""Reads the text of one multipart field; raises Problem."""

_ESCAPED_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_LISTED_NAMES = 12
_MAX_DETAIL = 500


def parse_json(text: bytes | str) -> Any:
    """Strict JSON: no NaN, no repeated keys, no text that cannot be stored. Raises ValueError with the reason."""
    try:
        value = json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=_no_constant,
            object_pairs_hook=_unique_keys,
        )
        encoded = json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno} column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except UnicodeEncodeError as error:
        raise ValueError("it contains half of a surrogate pair (\\ud800 to \\udfff)") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _ESCAPED_NUL.search(encoded):
        raise ValueError("it contains a NUL character (\\u0000)")
    return value


def validate(adapter: TypeAdapter[T], value: Any, at: str = "") -> T:
    """`value` as the adapter's type, without conversions that JSON does not need. Raises the 422 for what is wrong."""
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise invalid(field_errors(error.errors(include_url=False), at)) from error


def text_field(name: str, adapter: TypeAdapter[str]) -> FieldParser:
    """A multipart field that is taken as it is."""
    return lambda text: validate(adapter, text, f"/{name}")


def json_field(name: str, adapter: TypeAdapter[Any]) -> FieldParser:
    """A multipart field that holds JSON."""

    def parse(text: str) -> Any:
        try:
            value = parse_json(text)
        except ValueError as error:
            raise Problem.at(f"/{name}", "malformed_json", f"The part {name!r} is not JSON: {error}.") from error
        return validate(adapter, value, f"/{name}")

    return parse


def check_options(options: JobOptions, catalogue: Catalogue | None, *, dataset: bool, at: str = "") -> None:
    """What the types alone cannot say of a job body. `dataset` tells whether it comes with one. Raises Problem."""
    errors = [] if catalogue is None else _method_errors(options, catalogue, at, dataset=dataset)
    if catalogue is not None and options.device == "gpu" and not has_gpus(catalogue):
        detail = "No worker of this service has a GPU; use auto or cpu."
        errors.append(FieldError(pointer=f"{at}/device", code="no_such_device", detail=detail))
    if not dataset:
        if options.accuracy is not None:
            detail = "An accuracy floor needs a labelled dataset: name one in `dataset`, or upload one with the job."
            errors.append(FieldError(pointer=f"{at}/accuracy", code="dataset_required", detail=detail))
        if options.recovery.trains:
            detail = (
                "Recovery training needs images: name a dataset in `dataset`, labelled or not, or leave `recovery` out."
            )
            errors.append(FieldError(pointer=f"{at}/recovery", code="dataset_required", detail=detail))
        if options.encoding.epochs:
            detail = "Training shared values needs images: name a dataset in `dataset`, or leave `encoding.epochs` out."
            errors.append(FieldError(pointer=f"{at}/encoding/epochs", code="dataset_required", detail=detail))
        if "onnx-int8" in options.outputs:
            detail = "The output onnx-int8 is calibrated on images: name a dataset in `dataset`, or leave it out."
            errors.append(FieldError(pointer=f"{at}/outputs", code="dataset_required", detail=detail))
    if errors:
        raise invalid(errors)


def has_gpus(catalogue: Catalogue | None) -> bool:
    """Whether any worker said that it has a GPU."""
    return catalogue is not None and not set(catalogue.devices) <= {"cpu"}


def check_architecture(name: str | None, args: dict[str, Any] | None, catalogue: Catalogue | None) -> None:
    """Raises Problem unless a worker knows the architecture and its arguments; without a catalogue the worker decides."""
    if catalogue is None or name is None:
        return
    known: ArchitectureInfo | None = next((a for a in catalogue.architectures if a.name == name), None)
    if known is None:
        detail = _unknown("architecture", name, [architecture.name for architecture in catalogue.architectures])
        raise Problem.at("/architecture", "unknown_architecture", detail, code="unknown_architecture")
    errors = _schema_errors(args or {}, known.args_schema, "/architecture_args")
    if errors:
        raise invalid(errors)


def _method_errors(options: JobOptions, catalogue: Catalogue, at: str, *, dataset: bool) -> list[FieldError]:
    schemas = {method.type: method.options_schema for method in catalogue.methods}
    errors: list[FieldError] = []
    for index, method in enumerate(options.methods):
        pointer = f"{at}/methods/{index}"
        if method.type not in schemas:
            detail = _unknown("method", method.type, list(schemas))
            errors.append(FieldError(pointer=f"{pointer}/type", code="unknown_method", detail=detail))
        else:
            given = method.model_dump(mode="json")
            errors += _schema_errors(given, schemas[method.type], pointer)
            if not dataset:
                errors += _label_errors(given, schemas[method.type], pointer)
    return errors + _kind_errors(options, catalogue, at)


def _label_errors(method: dict[str, Any], schema: dict[str, Any], at: str) -> list[FieldError]:
    """Options of a method that train by labels, in a job without any dataset."""
    return [
        FieldError(
            pointer=f"{at}/{escape(name)}",
            code="dataset_required",
            detail=f"{name}: {method[name]} trains by labels: name a labelled dataset in `dataset`, or leave it out.",
        )
        for name, option in schema.get("properties", {}).items()
        if name in method and method[name] in option.get("x-needs-labels", [])
    ]


def _kind_errors(options: JobOptions, catalogue: Catalogue, at: str) -> list[FieldError]:
    """What follows from whether methods remove channels or rewrite layers, where the workers say which they do."""
    known = {method.type: method.kind for method in catalogue.methods}
    kinds = [known.get(method.type) for method in options.methods]
    errors: list[FieldError] = []
    if len(kinds) > 1 and None not in kinds and len(set(kinds)) < len(kinds):
        does = "rewrite layers" if kinds[0] == "rewrites_layers" else "remove channels"
        detail = (
            f"{' and '.join(method.type for method in options.methods)} both {does}. A chain is of one method that "
            "removes channels and one that rewrites layers, in either order. Run others one after another."
        )
        errors.append(FieldError(pointer=f"{at}/methods", code="invalid_chain", detail=detail))
    rewriting = next(
        (method.type for method, kind in zip(options.methods, kinds, strict=True) if kind == "rewrites_layers"), None
    )
    if rewriting is not None and options.plan is not None:
        detail = f"The method {rewriting!r} takes no widths: leave `plan` out, or use magnitude alone."
        errors.append(FieldError(pointer=f"{at}/plan", code="not_with_this_method", detail=detail))
    if rewriting is not None and options.budget.latency_ms is not None:
        detail = f"The method {rewriting!r} counts and does not time: cap flops, or use magnitude alone."
        errors.append(FieldError(pointer=f"{at}/budget/latency_ms", code="not_with_this_method", detail=detail))
    return errors


def _schema_errors(value: Any, schema: dict[str, Any], at: str) -> list[FieldError]:
    found = sorted(Draft202012Validator(schema).iter_errors(value), key=lambda error: list(map(str, error.path)))
    return [
        FieldError(
            pointer=at + "".join(f"/{escape(part)}" for part in error.absolute_path),
            code="unknown_field" if error.validator == "additionalProperties" else str(error.validator),
            detail=_said(error)[:_MAX_DETAIL],
        )
        for error in found
    ]


def _said(error: SchemaError) -> str:
    """What is wrong; where one of several forms is asked for, what each of them misses."""
    forms = [form.message for form in error.context or ()] if error.validator in ("anyOf", "oneOf") else []
    return f"It has none of the forms that are allowed: {'; '.join(dict.fromkeys(forms))}." if forms else error.message


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """Says what there is instead: the nearest names, or all of them where they are few."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    near = [by_folded[match] for match in difflib.get_close_matches(name.casefold(), by_folded, n=5, cutoff=0.5)]
    hint = f"Nearest: {', '.join(near)}." if near else f"GET /v1/{kind}s lists the {len(known)} known ones."
    if not near and len(known) <= _LISTED_NAMES:
        hint = f"Known: {', '.join(known)}."
    return f"Unknown {kind} {name[:100]!r}. {hint}"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:100]!r} is given twice")
    return result
