"""Several draws of one budget: the widths of the complexity-driven method are drawn by lot, so one draw says little.

With `seeds: n` the budget is met n times, each network is recovered, and the best by validation is delivered; with
`compare` the other two modes are recovered as well, for the picture of what each costs. Test images decide nothing:
they give the figures, whose mean and standard deviation over the seeds are reported. The exact costs of each mode's
plans are reported in any case, as planning takes no training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.budget import Constraint, Costs
from core.choice import Choice, Chooser
from core.errors import EngineError
from core.latency import analytic
from core.methods.complexity import MODES, ComplexityConfig
from core.request import CompressionRequest
from core.run import Made

FIGURES = ("params", "macs", "memory_bytes")
# What one draw may come to where another lands: a budget jumped over, or a cap on latency missed.
_MISSES = ("target_infeasible", "target_unmet")


@dataclass(frozen=True)
class Draw:
    """One mode's widths under one seed. made: None where only planned."""

    mode: str
    seed: int
    costs: Costs
    made: Made | None


@dataclass(frozen=True)
class Missed:
    """One mode's draw that came to nothing within the caps, under one seed."""

    mode: str
    seed: int
    refusal: EngineError

    def as_dict(self) -> dict[str, Any]:
        return {"mode": self.mode, "seed": self.seed, "code": self.refusal.code, "reason": self.refusal.message}


# (chooser, choice, name of the steps in the checkpoint) → the network of that choice.
Make = Callable[[Chooser, Choice, str], Made]


def draw_and_make(
    chooser: Chooser,
    choice: Choice,
    constraints: Sequence[Constraint],
    request: CompressionRequest,
    make: Make,
    step: str,
) -> Made:
    """The network to deliver, of the mode and, with several seeds, of the seed that validation likes best.

    choice: what `chooser` gives for `constraints` already. Raises the first refusal where no draw of the mode is within
    the caps.
    """
    config = chooser.config
    if not isinstance(config, ComplexityConfig):
        return make(chooser, choice, step)
    own = config.mode_for(choice.analysis, analytic(constraints))
    draws: list[Draw] = []
    missed: list[Missed] = []
    for mode in (own, *(other for other in MODES if other != own)):
        recovers = mode == own or config.compare
        for number in range(config.seeds):
            first = mode == own and number == 0
            name = step if first else f"{step}_{mode}_{number}"
            one = chooser if first else chooser.again(request.seed + number, mode=mode)
            try:
                planned = choice if first else one.choose(analytic(constraints))
                made = make(one, planned, name) if recovers else None
            except EngineError as refusal:
                if refusal.code not in _MISSES:
                    raise
                # The floors are the same for all, but one order of draws may jump over a budget that another lands on.
                missed.append(Missed(mode, request.seed + number, refusal))
                continue
            # A cap on latency is met by another choice than the one that was planned.
            costs = (made.choice if made else planned).plan.predicted
            draws.append(Draw(mode, request.seed + number, costs, made))
        if not draws:
            raise missed[0].refusal
    best = min((draw for draw in draws if draw.mode == own), key=_loss)
    details = {**best.made.recovered.details, "complexity": _described(draws, missed, own, best)}
    return replace(best.made, recovered=replace(best.made.recovered, details=details))


def _loss(draw: Draw) -> float:
    """By what a draw is chosen: lost validation accuracy, or the output error; without images all are the same."""
    recovered = draw.made.recovered
    if recovered.validation_drop is not None:
        return recovered.validation_drop
    errors = recovered.details.get("output_error") or {}
    return min(errors.values(), default=0.0)


def _described(draws: Sequence[Draw], missed: Sequence[Missed], mode: str, best: Draw) -> dict[str, Any]:
    """mode: the one that is delivered."""
    rows = [
        {
            "mode": draw.mode,
            "seed": draw.seed,
            **{name: draw.costs.as_dict()[name] for name in FIGURES},
            "accuracy": draw.made.recovered.accuracy_after if draw.made else None,
            "output_error": _loss(draw) if draw.made and draw.made.recovered.validation_drop is None else None,
            "delivered": draw is best,
        }
        for draw in draws
    ]
    modes = [
        _summary(name, [row for row in rows if row["mode"] == name]) for name in dict.fromkeys(d.mode for d in draws)
    ]
    return {"mode": mode, "modes": modes, "draws": rows, "missed": [one.as_dict() for one in missed]}


def _summary(mode: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds (spread None for one seed)."""
    found: dict[str, Any] = {"mode": mode, "seeds": len(rows)}
    for name in (*FIGURES, "accuracy"):
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = statistics.fmean(values) if values else None
        found[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
    return found
