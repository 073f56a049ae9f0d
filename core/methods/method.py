"""What a method is: a name, a paper, options with a JSON schema, and scores.

A method file defines `METHOD`; the registry finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.analysis import ChannelAnalysis
from core.budget import Constraint
from core.errors import EngineError
from core.methods.options import PLAN_OPTIONS, PlanConfig, checked_options
from core.network import Network
from core.planning import PlanOptions
from core.recovery.dataset import ImageDataset


@dataclass(frozen=True)
class MethodInfo:
    """What a user may ask for; `schema` is the JSON schema (2020-12) of the method's entry, `type` included."""

    type: str
    title: str
    description: str
    paper: str | None
    schema: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a score may look at beside the weights. dataset is there for methods with `needs_data` and no other.

    constraints: the caps that were first planned for.
    """

    seed: int
    dataset: ImageDataset | None
    device: torch.device
    constraints: tuple[Constraint, ...] = ()


@dataclass(frozen=True)
class Method:
    """One pruning method.

    paper: arXiv identifier. options: JSON schema of each of its own options by name, with its default; the options of
    plans are added. config_type: a frozen `PlanConfig` with one field per own option. score: (network, analysis, config,
    evidence) → float64 per component, larger = more important. needs_data: whether the score looks at a dataset.
    """

    type: str
    title: str
    description: str
    paper: str | None
    options: Mapping[str, Mapping[str, Any]]
    config_type: Callable[..., PlanConfig]
    score: Callable[[Network, ChannelAnalysis, Any, Evidence], np.ndarray]
    needs_data: bool = False

    @property
    def all_options(self) -> dict[str, Mapping[str, Any]]:
        return {**self.options, **PLAN_OPTIONS}

    def info(self) -> MethodInfo:
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.title,
            "type": "object",
            "properties": {
                "type": {"const": self.type},
                **{name: dict(option) for name, option in self.all_options.items()},
            },
            "required": ["type"],
            "additionalProperties": False,
        }
        return MethodInfo(self.type, self.title, self.description, self.paper, schema)

    def config(self, options: Mapping[str, Any]) -> Any:
        """The method's frozen config from options without `type`. Raises EngineError naming a bad option."""
        return self.config_type(**checked_options(self.type, self.all_options, options))

    def plan_options(self, config: PlanConfig) -> PlanOptions:
        """What the config says about the shape of the plan. Raises EngineError for limits that contradict."""
        return config.plan_options()

    def scores(
        self,
        network: Network,
        analysis: ChannelAnalysis,
        config: PlanConfig,
        seed: int,
        dataset: ImageDataset | None = None,
        device: torch.device | str = "cpu",
        constraints: Sequence[Constraint] = (),
    ) -> np.ndarray:
        """float64 per component, finite, not negative; larger = more important. The same for the same seed and device.

        Raises EngineError("invalid_request") where the method needs a dataset and there is none.
        """
        if self.needs_data and dataset is None:
            raise EngineError(
                "invalid_request",
                f"The method {self.type!r} scores channels on images. Give a dataset (labels are welcome, not needed), "
                "or choose a method that looks at weights alone, for example magnitude.",
                param="/dataset",
            )
        evidence = Evidence(seed, dataset if self.needs_data else None, torch.device(device), tuple(constraints))
        return self.score(network, analysis, config, evidence)
