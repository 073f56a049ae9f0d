"""What a method is: a name, a paper, options with a JSON schema, and scores.

A method file defines `METHOD`; the registry finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.analysis import ChannelAnalysis
from core.methods.options import checked_options
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
    """One pruning method.

    paper: arXiv identifier. options: JSON schema of every option by name, with its default. config_type: a frozen
    dataclass with one field per option. score: (network, analysis, config, seed) → float64 per component, larger = more
    important. shape: what the config says about the shape of the plan.
    """

    type: str
    title: str
    description: str
    paper: str | None
    options: Mapping[str, Mapping[str, Any]]
    config_type: Callable[..., Any]
    score: Callable[[Network, ChannelAnalysis, Any, int], np.ndarray]
    shape: Callable[[Any], PlanOptions]

    def info(self) -> MethodInfo:
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.title,
            "type": "object",
            "properties": {
                "type": {"const": self.type},
                **{name: dict(option) for name, option in self.options.items()},
            },
            "required": ["type"],
            "additionalProperties": False,
        }
        return MethodInfo(self.type, self.title, self.description, self.paper, schema)

    def config(self, options: Mapping[str, Any]) -> Any:
        """The method's frozen config from options without `type`. Raises EngineError naming a bad option."""
        return self.config_type(**checked_options(self.type, self.options, options))

    def plan_options(self, config: Any) -> PlanOptions:
        return self.shape(config)

    def scores(self, network: Network, analysis: ChannelAnalysis, config: Any, seed: int) -> np.ndarray:
        """float64 per component, finite, not negative; larger = more important. The same for the same seed."""
        return self.score(network, analysis, config, seed)
