"""Given widths: a user's own plan, turned into the widths of groups.

A layer whose channels are one group says what the group keeps. Where its channels fall into several groups (pieces of a
split), its width leaves a choice: the split nearest to what the planner would do by itself is taken, so that a plan that
was proposed and comes back unchanged is the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp

from core.analysis import ChannelAnalysis, LayerWidth
from core.planning.bounds import Bounds, contradiction, layers_by_name, unknown_layer

_PARAM = "/plan/layers"
_MOST_SHOWN = 6


def pinned(
    analysis: ChannelAnalysis, bounds: Bounds, given: Mapping[str, int], own_widths: Callable[[], np.ndarray]
) -> Bounds:
    """`bounds` with every group of a layer in `given` (layer name → output channels) at one width.

    own_widths: what the planner would choose, int64 per group; asked only where the given widths leave a choice.
    Raises EngineError("invalid_request") naming the layer and what it may have.
    """
    known = layers_by_name(analysis)
    layers = []
    for position, (name, out) in enumerate(given.items()):
        if name not in known:
            raise unknown_layer(name, known, f"{_PARAM}/{position}/name")
        layer = known[name]
        _check(layer, out, bounds, f"{_PARAM}/{position}/out")
        if layer.terms:
            layers.append((layer, out))
    widths: dict[int, tuple[int, LayerWidth, int]] = {}
    several = []
    for layer, out in layers:
        if len(layer.terms) > 1:
            several.append((layer, out))
            continue
        ((group, step),) = layer.terms
        width = (out - layer.fixed) // step
        if group in widths and widths[group][0] != width:
            _, other, other_out = widths[group]
            raise contradiction(
                f"Layers {other.name!r} and {layer.name!r} are coupled and have one width; the plan gives {other_out} "
                f"and {out}.",
                _PARAM,
            )
        widths[group] = width, layer, out
    lowest, highest = bounds.lowest.copy(), bounds.highest.copy()
    for group, (width, _, _) in widths.items():
        lowest[group] = highest[group] = width
    if several:
        found = _nearest(replace(bounds, lowest=lowest, highest=highest), several, own_widths())
        groups = sorted({group for layer, _ in several for group, _ in layer.terms})
        lowest[groups] = highest[groups] = found[groups]
    return replace(bounds, lowest=lowest, highest=highest)


def _check(layer: LayerWidth, out: int, bounds: Bounds, param: str) -> None:
    if not layer.terms:
        if out != layer.width:
            raise contradiction(f"Layer {layer.name!r} must keep its {layer.width} channels; {out} were given.", param)
        return
    least, most = bounds.range_of(layer)
    step = step_of(layer)
    if not least <= out <= most or (len(layer.terms) == 1 and (out - layer.fixed) % step):
        steps = f" in steps of {step}" if step > 1 else ""
        raise contradiction(
            f"Layer {layer.name!r} may have {least} to {most} channels{steps}; {out} were given.", param
        )


def step_of(layer: LayerWidth) -> int:
    """The difference between one width of the layer and the next."""
    return int(np.gcd.reduce([count for _, count in layer.terms])) if layer.terms else 1


def _nearest(bounds: Bounds, layers: Sequence[tuple[LayerWidth, int]], own: np.ndarray) -> np.ndarray:
    """Widths that give every layer its channels and differ from `own` in as few components as possible.

    A mixed-integer programme over the widths and their distances from `own`.
    """
    groups = len(own)
    exact = np.zeros((len(layers), groups))
    for row, (layer, _) in enumerate(layers):
        for group, count in layer.terms:
            exact[row, group] = count
    wanted = np.array([out - layer.fixed for layer, out in layers])
    nothing, one = np.zeros, np.eye(groups)
    conditions = [
        LinearConstraint(np.hstack([exact, nothing(exact.shape)]), wanted, wanted),
        LinearConstraint(np.hstack([one, -one]), -np.inf, own),
        LinearConstraint(np.hstack([one, one]), own, np.inf),
        LinearConstraint(np.hstack([bounds.floors, nothing(bounds.floors.shape)]), bounds.minimum, np.inf),
        LinearConstraint(np.hstack([bounds.ceilings, nothing(bounds.ceilings.shape)]), -np.inf, bounds.maximum),
    ]
    result = milp(
        c=np.concatenate([np.zeros(groups), np.ones(groups)]),
        integrality=np.concatenate([np.ones(groups), np.zeros(groups)]),
        bounds=Box(
            np.concatenate([bounds.lowest, nothing(groups)]), np.concatenate([bounds.highest, np.full(groups, np.inf)])
        ),
        constraints=[condition for condition in conditions if len(condition.A)],
    )
    if result.x is None:
        names = ", ".join(repr(layer.name) for layer, _ in layers[:_MOST_SHOWN])
        more = f" and {len(layers) - _MOST_SHOWN} more" if len(layers) > _MOST_SHOWN else ""
        raise contradiction(
            f"The widths of {names}{more} cannot be had together: their channels are shared with other layers.", _PARAM
        )
    return np.rint(result.x[:groups]).astype(np.int64)
