"""Several draws of one budget: the widths of the complexity-driven method are drawn by lot, so one draw says little.

With `seeds: n` the budget is met n times, each network is recovered, and the best by validation is delivered; with
`compare` the other two modes are recovered as well, for the picture of what each costs. Test images decide nothing: they
give the figures, whose mean and standard deviation over the seeds are reported. The exact costs of each mode's plans are
reported in any case, as planning takes no training.
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
from core.recovery import Recovered
from core.request import CompressionRequest
from core.surgery import Equivalence

FIGURES = ("params", "macs", "memory_bytes")


@dataclass(frozen=True)
class Made:
    """One network within the caps, verified and recovered."""

    choice: Choice
    equivalence: Equivalence
    recovered: Recovered


@dataclass(frozen=True)
class Draw:
    """One mode's widths under one seed. made: None where only planned."""

    mode: str
    seed: int
    costs: Costs
    made: Made | None


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

    choice: what `chooser` gives for `constraints` already.
    """
    config = chooser.config
    if not isinstance(config, ComplexityConfig):
        return make(chooser, choice, step)
    own = config.mode_for(choice.analysis, analytic(constraints))
    draws: list[Draw] = []
    for mode in (own, *(other for other in MODES if other != own)):
        recovers = mode == own or config.compare
        for number in range(config.seeds):
            first = mode == own and number == 0
            name = step if first else f"{step}_{mode}_{number}"
            one = chooser if first else chooser.again(request.seed + number, mode=mode)
            try:
                planned = choice if first else one.choose(analytic(constraints))
            except EngineError as refusal:
                if refusal.code != "target_infeasible":
                    raise
                # The floors are the same for all, but one order of draws may jump over a budget that another lands on.
                continue
            made = make(one, planned, name) if recovers else None
            draws.append(Draw(mode, request.seed + number, planned.plan.predicted, made))
    best = min((draw for draw in draws if draw.mode == own), key=_loss)
    details = {**best.made.recovered.details, "complexity": _described(draws, own, best)}
    return replace(best.made, recovered=replace(best.made.recovered, details=details))


def _loss(draw: Draw) -> float:
    """By what a draw is chosen: lost validation accuracy, or the output error; without images all are the same."""
    recovered = draw.made.recovered
    if recovered.validation_drop is not None:
        return recovered.validation_drop
    errors = recovered.details.get("output_error") or {}
    return min(errors.values(), default=0.0)


def _described(draws: Sequence[Draw], mode: str, best: Draw) -> dict[str, Any]:
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
    return {"mode": mode, "modes": modes, "draws": rows}


def _summary(mode: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds (spread None for one seed)."""
    found: dict[str, Any] = {"mode": mode, "seeds": len(rows)}
    for name in (*FIGURES, "accuracy"):
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = statistics.fmean(values) if values else None
        found[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
    return found
