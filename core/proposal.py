"""The proposal: a plan as one JSON object that a person can read, edit and send back.

Automatic → proposed → manual: the widths of `layers` (name and `after.out`), sent back as a job's `plan`, are taken as
they are. Layers of one `group` have one width and are edited together; within a width the scores choose the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.analysis import Profile
from core.budget import Constraint, Costs
from core.choice import Choice
from core.errors import EngineError
from core.report import frozen_rows, layer_rows


def compose_proposal(
    *,
    baseline: Profile,
    baseline_costs: Costs,
    after: Profile,
    constraints: Sequence[Constraint],
    choice: Choice,
    folded: Sequence[str],
    encoded: bool,
    refusal: EngineError | None,
) -> dict[str, Any]:
    """`predicted` is exact; a cap on latency has no prediction and is left out of `constraints`.

    encoded: whether a cap on the file, left out as well, is kept by the encoding. refusal: why the budget is out of reach;
    `choice` is then the nearest network.
    """
    planned = {layer.name: layer for layer in choice.plan.layers}
    layers = [
        {
            "name": row["name"],
            "before": row["before"],
            "after": row["after"],
            "min": planned[row["name"]].smallest,
            "max": planned[row["name"]].largest,
            "step": planned[row["name"]].step,
            "group": planned[row["name"]].group,
        }
        for row in layer_rows(baseline, after, choice.plan)
        if row["name"] in planned
    ]
    predicted = choice.plan.predicted
    measured_later = " The latency is measured once the network is made." if _timed(constraints) else ""
    stored_later = " The encoding brings model.pwt under its cap." if encoded else ""
    return {
        "feasible": refusal is None,
        "predicted": predicted.as_dict(),
        "baseline": baseline_costs.as_dict(),
        "constraints": [constraint.as_dict(predicted) for constraint in constraints if constraint.analytic],
        "layers": layers,
        "frozen": frozen_rows(choice.analysis.frozen),
        "folded": list(folded),
        "survivors": bool(choice.changed),
        "changed": frozen_rows(choice.changed),
        "smallest": refusal.details.get("smallest") if refusal else None,
        "note": choice.note + measured_later + stored_later,
        "error": {"code": refusal.code, "message": refusal.message, "details": refusal.details} if refusal else None,
    }


def _timed(constraints: Sequence[Constraint]) -> bool:
    return not all(constraint.analytic for constraint in constraints)
