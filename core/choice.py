"""Choice: the plan of one run, and the analysis that it rests on.

    exact analysis ── plan ── infeasible? ── analysis over the survivors ── plan

Exact means that what is left computes what it computed before. Only where the budget cannot be reached so, or where the
user asks, norms, means and softmax over channels run over the channels that are left; the choice says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.analysis import ChannelAnalysis, Frozen, analyse
from core.budget import Constraint
from core.errors import EngineError
from core.methods import get_method
from core.network import Network
from core.planning import Plan, SizeTable, plan_widths, smallest_plan
from core.recovery import ImageDataset

_LEVELS = {"never": (False,), "auto": (False, True), "always": (True,)}


@dataclass(frozen=True, eq=False)
class Choice:
    """A plan and its analysis. changed: operators that no longer run over all channels but over those that are left."""

    analysis: ChannelAnalysis
    plan: Plan
    changed: tuple[Frozen, ...]

    @property
    def note(self) -> str:
        """How the caps are used and at what price, for a person."""
        if not self.changed:
            return self.plan.note
        layers = list(dict.fromkeys(one.layer for one in self.changed))
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        return (
            f"{self.plan.note} Statistics over channels run over the channels that are left (survivors), which changes "
            f"the function beyond the removed channels: {shown}."
        )


@dataclass(frozen=True, eq=False)
class _Level:
    """One analysis with everything that does not depend on the budget."""

    analysis: ChannelAnalysis
    scores: np.ndarray
    size: SizeTable | None


class Chooser:
    """Plans one network under changing caps; analyses and scores are made once.

    given: a user's own widths, by layer name. with_size: whether plans are to know the bytes of their file.
    """

    def __init__(
        self,
        network: Network,
        method: Mapping[str, Any],
        *,
        seed: int,
        given: Mapping[str, int] | None = None,
        with_size: bool = False,
        dataset: ImageDataset | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises EngineError("invalid_request") for a method or an option that does not exist."""
        options = dict(method)
        self._named = dict(method)
        self._network = network
        self._method = get_method(options.pop("type"))
        self._config = self._method.config(options)
        self._options = self._method.plan_options(self._config)
        self._seed, self._given, self._with_size = seed, dict(given or {}), with_size
        self._dataset, self._device = dataset, device
        self._levels: dict[bool, _Level] = {}

    @property
    def config(self) -> Any:
        """The method's options, checked and completed."""
        return self._config

    def again(self, seed: int, **options: Any) -> Chooser:
        """Another chooser for the same network: another seed, and other values of some of the method's options."""
        return Chooser(
            self._network,
            {**self._named, **options},
            seed=seed,
            given=self._given,
            with_size=self._with_size,
            dataset=self._dataset,
            device=self._device,
        )

    def choose(self, constraints: Sequence[Constraint]) -> Choice:
        """The plan within `constraints`. Raises EngineError: target_infeasible, or invalid_request for given widths."""
        *others, last = _LEVELS[self._options.survivors]
        for survivors in others:
            try:
                return self._choice(survivors, constraints)
            except EngineError as refusal:
                # Given widths may be those of a plan that was proposed with survivors.
                curable = refusal.code == "target_infeasible" or (self._given and refusal.code == "invalid_request")
                if not curable or not self._level(last, constraints).analysis.trace.subsets:
                    raise
        return self._choice(last, constraints)

    def nearest(self, constraints: Sequence[Constraint]) -> Choice:
        """The plan nearest to caps that cannot all be met."""
        return self._choice(_LEVELS[self._options.survivors][-1], constraints, nearest=True)

    def _choice(self, survivors: bool, constraints: Sequence[Constraint], *, nearest: bool = False) -> Choice:
        level = self._level(survivors, constraints)
        plan_by = smallest_plan if nearest else plan_widths
        plan = plan_by(level.analysis, level.scores, constraints, self._options, given=self._given, size=level.size)
        return Choice(level.analysis, plan, level.analysis.changed(plan.keep))

    def _level(self, survivors: bool, constraints: Sequence[Constraint]) -> _Level:
        if survivors not in self._levels:
            analysis = analyse(self._network, survivors=survivors)
            # Caps move together from one plan to the next, so what the first ones say of their order stays true.
            scores = self._method.scores(
                self._network, analysis, self._config, self._seed, self._dataset, self._device, constraints
            )
            size = SizeTable.of(self._network, analysis) if self._with_size else None
            self._levels[survivors] = _Level(analysis, scores, size)
        return self._levels[survivors]


def given_widths(plan: Mapping[str, Any] | None) -> dict[str, int]:
    """`{"layers": [{"name", "out"}, …]}` as widths by layer name. Raises EngineError("invalid_request") naming the
    entry."""
    widths: dict[str, int] = {}
    for position, entry in enumerate((plan or {}).get("layers", ())):
        name, out = entry.get("name"), entry.get("out")
        param = f"/plan/layers/{position}"
        if not isinstance(name, str) or not isinstance(out, int) or isinstance(out, bool) or out < 1:
            raise EngineError(
                "invalid_request",
                "A layer of a plan needs a name and a width: out, a whole number of at least 1.",
                param=param,
            )
        if widths.setdefault(name, out) != out:
            raise EngineError(
                "invalid_request", f"Layer {name!r} is given two widths, {widths[name]} and {out}.", param=param
            )
    return widths
