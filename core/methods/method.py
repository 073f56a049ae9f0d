"""What a method is: a name, a paper, options with a JSON schema, and scores.

Methods that remove channels score them (`Method`); others replace layers by another form (`RewritingMethod`). A method
file defines `METHOD`; the registry finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from core.analysis import ChannelAnalysis
from core.budget import Constraint, Costs
from core.errors import EngineError
from core.methods.options import PLAN_OPTIONS, PlanConfig, checked_options
from core.network import Network
from core.planning import PlanOptions
from core.progress import Progress, silent
from core.recovery.dataset import ImageDataset
from core.recovery.recalibration import Kept
from core.recovery.steps import Steps

MethodKind = Literal["removes_channels", "rewrites_layers"]


@dataclass(frozen=True)
class MethodInfo:
    """What a user may ask for; `schema` is the JSON schema (2020-12) of the method's entry, `type` included, where
    `x-needs-labels` lists values of an option that need a labelled dataset."""

    type: str
    title: str
    description: str
    paper: str | None
    kind: MethodKind
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
    plans are added. config_type: a frozen `PlanConfig` with one field per own option. score: (network, analysis,
    config, evidence) → float64 per component, larger = more important. needs_data: whether the score looks at a
    dataset.
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
        return _info(self, self.all_options)

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


@dataclass(frozen=True, eq=False)
class RewritingTask:
    """What a rewriting method works on. original: the costs of what the request is about, which may be more than
    `network` has left. seed: of its training, if it trains.

    nearest: where the caps are out of reach, come as near as possible instead of raising. share: how far on the way to
    what the options aim at beside the caps, as an exponent; a later method goes on. images: prepared inputs [n, …] to
    fit to, None without any. dataset: what they are from, for a method that trains. steps: where a long fit is kept, so
    that an interrupted run need not fit again; None keeps nothing.
    """

    network: Network
    original: Costs
    constraints: tuple[Constraint, ...]
    nearest: bool
    device: torch.device
    seed: int
    images: Tensor | None = None
    dataset: ImageDataset | None = None
    progress: Progress = silent
    steps: Steps | None = None
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Fitting:
    """What a fit follows. kept: what the fitted network still has of the tensors of `original`. images: prepared."""

    original: Network
    kept: Kept
    images: Tensor
    device: torch.device


@dataclass(frozen=True)
class RewrittenLayer:
    """One layer: its name, its output channels before and after, and its node in the graph."""

    name: str
    before: int
    after: int
    node: str


@dataclass(frozen=True, eq=False)
class Rewriting:
    """Layers in another form. network: for training, with the other form's parameters.

    predicted: exact costs of what is delivered. layers: those in another form. kept: what is left of the original's
    tensors that lost channels on the way, as indices along each axis (None where it is whole). delivered, reference:
    from the trained network, the form that is delivered and the plain one that it must equal. sparse: from the trained
    network, counts by nonzeros. note, report: for a person, and as JSON. narrowing: how it goes on where the reference
    loses channels.
    """

    network: Network
    predicted: Costs
    layers: tuple[RewrittenLayer, ...]
    kept: Kept
    note: str
    report: dict[str, Any]
    delivered: Callable[[Network], Network]
    reference: Callable[[Network], Network]
    sparse: Callable[[Network], dict[str, int]]
    narrowing: Narrowing


class Narrowing(Protocol):
    """A rewriting whose reference loses channels. pruned: the cut reference; cut: what is left of its tensors.

    aims: what is held beside the caps because an option says so, in full; counted by nonzeros.
    """

    @property
    def aims(self) -> tuple[Constraint, ...]: ...

    def fits(self, pruned: Network, cut: Kept, constraints: Sequence[Constraint]) -> bool:
        """Whether everything that was rewritten may stay within the caps."""

    def narrow(
        self, pruned: Network, cut: Kept, constraints: Sequence[Constraint], nearest: bool, fitting: Fitting | None
    ) -> Rewriting:
        """The same layers with these channels less, within the caps. Raises EngineError("target_infeasible")."""


@dataclass(frozen=True)
class RewritingMethod:
    """A method that replaces layers by another form instead of removing channels; the fields are those of `Method`.

    rewrite: raises EngineError("target_infeasible") where the caps are out of its reach. by_labels: the option of a
    config that asks for training by labels, if any does.
    """

    type: str
    title: str
    description: str
    paper: str | None
    options: Mapping[str, Mapping[str, Any]]
    config_type: Callable[..., Any]
    rewrite: Callable[[RewritingTask, Any], Rewriting]
    by_labels: Callable[[Any], str | None]
    needs_data: bool = False

    def info(self) -> MethodInfo:
        return _info(self, self.options)

    def config(self, options: Mapping[str, Any]) -> Any:
        """The method's frozen config from options without `type`. Raises EngineError naming a bad option."""
        return self.config_type(**checked_options(self.type, self.options, options))


def _info(method: Method | RewritingMethod, options: Mapping[str, Mapping[str, Any]]) -> MethodInfo:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": method.title,
        "type": "object",
        "properties": {"type": {"const": method.type}, **{name: dict(option) for name, option in options.items()}},
        "required": ["type"],
        "additionalProperties": False,
    }
    kind: MethodKind = "rewrites_layers" if isinstance(method, RewritingMethod) else "removes_channels"
    return MethodInfo(method.type, method.title, method.description, method.paper, kind, schema)
