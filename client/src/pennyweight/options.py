"""Command-line words for budgets and shapes, turned into the JSON of the HTTP API.

"40%"  → {"max_ratio": 0.4}     "100k" → {"max": 100000}     "2MB" → {"max": 2000000}     "weights:1MiB" → kind
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_LATENCY_UNITS = {"": 1, "ms": 1}
_UNITS = {"memory": _BYTE_UNITS, "size": _BYTE_UNITS, "latency_ms": _LATENCY_UNITS}
_EXAMPLES = {"memory": "2MB or 60%", "size": "500kB or 40%", "latency_ms": "5 or 60%"}
_MEMORY_KINDS = ("weights", "activations", "total")
_SHAPE_HELP = (
    "give positive sizes without the batch, for example 3x32x32; of several inputs each by name, for example "
    "template=3x128x128,search=3x256x256"
)


class OptionError(ValueError):
    """An option's text cannot be understood; the message says what would be."""


def parse_cap(metric: str, text: str) -> dict[str, Any]:
    """One cap as JSON. `metric` is params, flops, macs, memory, size or latency_ms; memory may name its kind first
    (`weights:2MB`). A bare fraction such as `0.4` is refused: nobody means four tenths of a FLOP."""
    option = f"--{metric.replace('_', '-')} {text}"
    cap: dict[str, Any] = {}
    words = text.strip()
    if metric == "memory" and ":" in words:
        kind, words = (part.strip() for part in words.split(":", 1))
        if kind not in _MEMORY_KINDS:
            raise OptionError(f"{option}: the kind before ':' is one of {', '.join(_MEMORY_KINDS)}, not {kind!r}")
        cap["kind"] = kind
    units = _UNITS.get(metric, _COUNT_UNITS)
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*(%|[A-Za-z]*)", words)
    example = _EXAMPLES.get(metric, "100k or 40%")
    if match is None:
        raise OptionError(f"{option}: give a number or a percentage of the original, for example {example}")
    try:
        number = Decimal(match[1].replace("_", ""))
    except InvalidOperation as error:
        raise OptionError(f"{option}: {match[1]!r} is not a number") from error
    if match[2] == "%":
        if not 0 < number < 100:
            raise OptionError(f"{option}: a percentage of the original lies between 0% and 100%")
        return {**cap, "max_ratio": float(number / 100)}
    factor = units.get(match[2].lower())
    if factor is None:
        known = ", ".join(unit for unit in units if unit)
        raise OptionError(f"{option}: unknown unit {match[2]!r}; known are {known} and %")
    if number <= 0:
        raise OptionError(f"{option}: a cap is a positive number")
    value = number * factor
    if value < 1 and metric != "latency_ms":
        raise OptionError(
            f"{option}: a limit below 1 is none; for a fraction of the original write {float(100 * number):g}%"
        )
    return {**cap, "max": int(value) if value == value.to_integral_value() else float(value)}


def parse_budget(caps: Mapping[str, str | None]) -> dict[str, Any]:
    """The `budget` object of a job from the given options, those left out dropped."""
    return {metric: parse_cap(metric, text) for metric, text in caps.items() if text is not None}


def parse_input_shape(text: str) -> list[int] | dict[str, list[int]]:
    """`3x32x32`, `3,32,32` or `[3, 32, 32]`: channels, height, width, without the batch.

    Of several inputs each by its name: `template=3x128x128,search=3x256x256`, or a JSON object.
    """
    if text.lstrip().startswith("{"):
        named = parse_json_object("--input-shape", text)
        parts = {name: "x".join(map(str, sizes)) if isinstance(sizes, list) else "" for name, sizes in named.items()}
    elif "=" in text:
        pairs = [part.rpartition("=") for part in text.split(",")]
        parts = {name.strip(): sizes for name, _, sizes in pairs}
        if len(parts) < len(pairs):
            raise OptionError(f"--input-shape {text}: {_SHAPE_HELP}")
    else:
        return _sizes(text, text)
    if not parts or "" in parts:
        raise OptionError(f"--input-shape {text}: {_SHAPE_HELP}")
    return {name: _sizes(sizes, text) for name, sizes in parts.items()}


def _sizes(text: str, whole: str) -> list[int]:
    numbers = re.split(r"[x,]", text.strip().strip("[]").replace(" ", ""))
    if not all(number.isdigit() and int(number) > 0 for number in numbers):
        raise OptionError(f"--input-shape {whole}: {_SHAPE_HELP}")
    return [int(number) for number in numbers]


def parse_normalization(text: str) -> dict[str, list[float]]:
    """`0.49,0.48,0.45/0.25,0.24,0.26` (mean/std per channel), a JSON object, or the path of a JSON file."""
    example = "0.485,0.456,0.406/0.229,0.224,0.225"
    try:
        if text.lstrip().startswith("{"):
            value = json.loads(text)
        elif Path(text).suffix == ".json":
            value = json.loads(Path(text).read_text())
        else:
            mean, std = text.split("/")
            value = {"mean": [float(x) for x in mean.split(",")], "std": [float(x) for x in std.split(",")]}
        return {"mean": [float(x) for x in value["mean"]], "std": [float(x) for x in value["std"]]}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise OptionError(
            f"--normalization {text}: give mean/std per channel, for example {example}, or JSON"
        ) from error


def parse_convert(text: str) -> dict[str, Any]:
    """`224x224` (height × width), `rgb` or `grey`, or both with a comma between them: `rgb,224x224`."""
    value: dict[str, Any] = {}
    for word in (part.strip() for part in text.split(",")):
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", word)
        if match is not None and "size" not in value:
            value["size"] = [int(match[1]), int(match[2])]
        elif word in ("grey", "rgb") and "color" not in value:
            value["color"] = word
        else:
            raise OptionError(f"--convert {text}: give a size (height x width), grey or rgb, for example rgb,224x224")
    return value


def parse_json_object(option: str, text: str) -> dict[str, Any]:
    """A JSON object given as an option."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise OptionError(f"{option} {text}: give a JSON object, for example '{{\"depth\": 20}}'") from error
    if not isinstance(value, dict):
        raise OptionError(f"{option} {text}: give a JSON object, not a {type(value).__name__}")
    return value


def parse_method(text: str) -> dict[str, Any]:
    """`magnitude`, or `magnitude:round_to=8,p=1` with options, or a JSON object."""
    return _named("--method", "type", text, "round_to=8")


def parse_recovery(text: str) -> dict[str, Any]:
    """`epochs=10,optimizer=adamw,mixup=0.2`, or a JSON object."""
    if text.lstrip().startswith("{"):
        return parse_json_object("--recovery", text)
    return _pairs(f"--recovery {text}", text, "epochs=10,optimizer=adamw,ema_decay=0.999")


def parse_encoding(text: str) -> dict[str, Any]:
    """`ecsq`, or `ecsq:levels=16,prune=50` with options, or a JSON object."""
    return _named("--encoding", "quantizer", text, "levels=16")


def _named(option: str, field: str, text: str, example: str) -> dict[str, Any]:
    """`name:key=value,…` as an object whose `field` is the name."""
    if text.lstrip().startswith("{"):
        return parse_json_object(option, text)
    name, _, rest = text.partition(":")
    return _pairs(f"{option} {text}", rest, f"{name}:{example}", {field: name.strip()})


def _pairs(option: str, text: str, example: str, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`key=value,…`, values as JSON where they are, else as text; each key once. before: what is said already."""
    found: dict[str, Any] = dict(before or {})
    for pair in filter(None, text.split(",")):
        key, separator, value = pair.partition("=")
        if not separator:
            raise OptionError(f"{option}: write options as name=value, for example {example}")
        key = key.strip()
        if key in found:
            raise OptionError(f"{option}: {key} is given twice")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value.strip()
    return found
