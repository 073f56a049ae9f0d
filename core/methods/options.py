"""Options of a method: checked against the JSON schemas that the method publishes, with errors that name the option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError, best_match

from core.errors import EngineError
from core.planning import LayerLimits, PlanOptions

# Options about the shape of the plan, which every method that plans widths has in common.
PLAN_OPTIONS: dict[str, dict[str, Any]] = {
    "min_channels": {
        "type": "integer",
        "minimum": 1,
        "description": "Fewest channels that a layer keeps; by default 10 % of them, but at least 4.",
    },
    "round_to": {
        "type": "integer",
        "minimum": 1,
        "maximum": 64,
        "default": 1,
        "description": "Widths are multiples of this where a layer is wide enough; 8 is what hardware likes.",
    },
    "ranking": {
        "type": "string",
        "enum": ["global", "per_layer"],
        "default": "global",
        "description": "Whether the scores decide how much each layer gives, or every layer gives the same share.",
    },
    "survivors": {
        "type": "string",
        "enum": ["auto", "never", "always"],
        "default": "auto",
        "description": (
            "Whether norms, means and softmax over channels may run over the channels that are left: "
            "auto does so only where the budget is out of reach otherwise."
        ),
    },
    "layers": {
        "type": "array",
        "maxItems": 10_000,
        "default": [],
        "description": "Limits of single layers by name: freeze keeps all channels; min and max bound the width.",
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "freeze": {"const": True},
                "min": {"type": "integer", "minimum": 1},
                "max": {"type": "integer", "minimum": 1},
            },
            "required": ["name"],
            "oneOf": [{"required": ["freeze"]}, {"anyOf": [{"required": ["min"]}, {"required": ["max"]}]}],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class PlanConfig:
    """The options that every method has; a method's own config adds its own."""

    min_channels: int | None = None
    round_to: int = 1
    ranking: str = "global"
    survivors: str = "auto"
    layers: tuple[Mapping[str, Any], ...] = ()

    def plan_options(self) -> PlanOptions:
        """Raises EngineError("invalid_request") for a layer whose limits contradict each other."""
        limits = []
        for position, entry in enumerate(self.layers):
            try:
                limits.append(LayerLimits(**entry))
            except ValueError as error:
                raise EngineError(
                    "invalid_request",
                    f"Limits of layer {entry['name']!r}: {error}.",
                    param=f"/methods/0/layers/{position}",
                ) from error
        return PlanOptions(
            min_channels=self.min_channels,
            round_to=self.round_to,
            ranking=self.ranking,
            survivors=self.survivors,
            layers=tuple(limits),
        )


def checked_options(
    method: str, schemas: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]
) -> dict[str, Any]:
    """`options`, each valid under its schema. Raises EngineError with the JSON pointer of the first bad one."""
    for name in options:
        if name not in schemas:
            raise _bad([name], f"{method} has no such option; it has {', '.join(schemas) or 'none'}")
    return {name: _checked(name, schemas[name], value) for name, value in options.items()}


def _checked(name: str, schema: Mapping[str, Any], value: Any) -> Any:
    # An engine that is called from Python may be given tuples.
    value = list(value) if isinstance(value, tuple) else value
    error = best_match(jsonschema.Draft202012Validator(dict(schema)).iter_errors(value))
    while error is not None and not {"type", "enum", "const"} & error.schema.keys():
        # Of two forms of an entry, neither: what is asked for is said where the entry is described.
        error = error.parent
    if error is not None:
        raise _bad([name, *error.absolute_path], f"must be {_wanted(error)}, not {_shown(error.instance)}")
    return _plain(value)


def _plain(value: Any) -> Any:
    """JSON as Python wants it: 2.0 is a whole number, lists are tuples."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def _wanted(error: ValidationError) -> str:
    """What the schema asks for at the place of the error, in words."""
    schema = error.schema
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"]).lower()
    if schema.get("type") in ("integer", "number"):
        kind = "a whole number" if schema["type"] == "integer" else "a number"
        low, high = schema.get("minimum"), schema.get("maximum")
        if high is None:
            return f"{kind} of at least {low}" if low is not None else kind
        return f"{kind} from {low} to {high}"
    if schema.get("type") == "object" and error.validator != "type":
        known = ", ".join(schema["properties"])
        return f"an object of {known} ({', '.join(schema['required'])} required; {_alternatives(schema)})"
    return {"array": "a list", "object": "an object", "string": "a text"}[schema["type"]]


def _alternatives(schema: Mapping[str, Any]) -> str:
    return "with freeze alone, or min and max" if "oneOf" in schema else "no others"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"


def _bad(path: list[Any], reason: str) -> EngineError:
    option = ".".join(map(str, path))
    return EngineError(
        "invalid_request", f"Method option {option!r}: {reason}.", param="/".join(["/methods/0", *map(str, path)])
    )
