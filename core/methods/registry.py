"""The methods by name. Adding one means one file and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from core.analysis import ChannelAnalysis
from core.errors import EngineError
from core.methods import magnitude
from core.network import Network
from core.planning import PlanOptions


@dataclass(frozen=True)
class MethodInfo:
    """What a user may ask for; `schema` is the JSON schema (2020-12) of the method's entry, `type` included."""

    type: str
    title: str
    description: str
    paper: str | None
    schema: dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One method: a module with TYPE, TITLE, DESCRIPTION, PAPER, OPTIONS_SCHEMA, config, plan_options and scores."""

    type: str
    title: str
    description: str
    module: ModuleType

    def info(self) -> MethodInfo:
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.title,
            "type": "object",
            "properties": {"type": {"const": self.type}, **self.module.OPTIONS_SCHEMA},
            "required": ["type"],
            "additionalProperties": False,
        }
        return MethodInfo(self.type, self.title, self.description, self.module.PAPER, schema)

    def config(self, options: Mapping[str, Any]) -> Any:
        """The method's frozen config; `options` without `type`. Raises EngineError naming a bad option."""
        return self.module.config(options)

    def plan_options(self, config: Any) -> PlanOptions:
        return self.module.plan_options(config)

    def scores(self, network: Network, analysis: ChannelAnalysis, config: Any, seed: int) -> np.ndarray:
        """float64 per component, larger = more important."""
        return self.module.scores(network, analysis, config, seed)


def _method(module: ModuleType) -> Method:
    return Method(module.TYPE, module.TITLE, module.DESCRIPTION, module)


_MAGNITUDE = _method(magnitude)
_METHODS: dict[str, Method] = {
    "auto": replace(
        _MAGNITUDE,
        type="auto",
        title="Chosen by Pennyweight",
        description="The method that measures best so far: magnitude.",
    ),
    _MAGNITUDE.type: _MAGNITUDE,
}


def get_method(name: str) -> Method:
    """The method called `name`. Raises EngineError with the nearest names on a miss."""
    if name not in _METHODS:
        near = difflib.get_close_matches(name, _METHODS, n=3) or sorted(_METHODS)
        raise EngineError(
            "internal", f"There is no method {name!r}; did you mean {', '.join(near)}?", param="/methods/0/type"
        )
    return _METHODS[name]


def method_infos() -> list[MethodInfo]:
    """Every method, as the service's catalogue shows it."""
    return [method.info() for method in _METHODS.values()]
