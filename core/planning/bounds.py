"""Bounds: between which widths every group may be planned.

Floors, and the limits that a user gives to single layers, are said in channels of a layer; a plan chooses components of
a group. Where one group makes a layer, its bounds follow; where several do (pieces of a split, concatenated channels),
a **shared** bound remains as a linear condition on their widths. Limits of a user come first: default floors yield.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from core.analysis import ChannelAnalysis, LayerWidth
from core.errors import EngineError
from core.planning.options import LayerLimits, PlanOptions


@dataclass(frozen=True, eq=False)
class Bounds:
    """lowest, highest: int64 components per group.

    Shared floors `floors @ widths >= minimum` and shared ceilings `ceilings @ widths <= maximum`, int64 [rows, groups].
    """

    lowest: np.ndarray
    highest: np.ndarray
    floors: np.ndarray
    minimum: np.ndarray
    ceilings: np.ndarray
    maximum: np.ndarray

    @staticmethod
    def of(analysis: ChannelAnalysis, options: PlanOptions) -> Bounds:
        """Raises EngineError("invalid_request") for a layer that is not there and for limits that contradict."""
        limits = _limits(analysis, options.layers)
        try:
            return Bounds._of(analysis, options, limits)
        except EngineError:
            # Default floors yield to a user's limits: one channel per layer is enough.
            return Bounds._of(analysis, replace(options, min_channels=1), limits)

    @staticmethod
    def _of(
        analysis: ChannelAnalysis, options: PlanOptions, limits: Sequence[tuple[LayerWidth, LayerLimits]]
    ) -> Bounds:
        full = analysis.full_widths
        lowest, highest = np.zeros_like(full), full.copy()
        owners: dict[tuple[str, int], str] = {}
        for layer, limit in limits:
            if len(layer.terms) == 1 or limit.freeze:
                _narrow(layer, limit, lowest, highest, full, owners)
        floors: list[tuple[dict[int, int], int]] = []
        ceilings: list[tuple[dict[int, int], int]] = []
        for layer, limit in limits:
            if len(layer.terms) > 1 and limit.max is not None:
                ceilings.append((dict(layer.terms), limit.max - layer.fixed))
            if len(layer.terms) > 1 and limit.min is not None:
                floors.append((dict(layer.terms), limit.min - layer.fixed))
        for terms, minimum in floors:
            _raise_lowest(terms, minimum, lowest, highest)
        for terms, maximum in ceilings:
            _lower_highest(terms, maximum, lowest, highest)
        for terms, minimum in floors:
            _raise_lowest(terms, minimum, lowest, highest)
        own = {id(layer) for layer, limit in limits if limit.freeze or limit.min is not None}
        for layer in analysis.layers:
            if layer.terms and id(layer) not in own:
                terms = dict(layer.terms)
                reach = sum(count * int(highest[g]) for g, count in terms.items())
                # Floors yield to limits, but no layer is emptied.
                minimum = max(min(options.floor(layer.width) - layer.fixed, reach), 1 - layer.fixed)
                _raise_lowest(terms, minimum, lowest, highest)
                floors.append((terms, minimum))
        floors = [(terms, least) for terms, least in floors if _sum(terms, lowest) < least]
        for terms, most in ceilings:
            if _sum(terms, lowest) > most:
                raise _too_narrow(most, _sum(terms, lowest))
        ceilings = [(terms, most) for terms, most in ceilings if _sum(terms, highest) > most]
        return Bounds(lowest, highest, *_matrix(floors, len(full)), *_matrix(ceilings, len(full)))

    def range_of(self, layer: LayerWidth) -> tuple[int, int]:
        """Fewest and most channels that the layer may have."""
        terms = dict(layer.terms)
        least, most = _sum(terms, self.lowest), _sum(terms, self.highest)
        row = _row(terms, len(self.lowest))
        for found, minimum in zip(self.floors, self.minimum.tolist(), strict=True):
            least = max(least, minimum) if (found == row).all() else least
        for found, maximum in zip(self.ceilings, self.maximum.tolist(), strict=True):
            most = min(most, maximum) if (found == row).all() else most
        return layer.fixed + least, layer.fixed + most


def layers_by_name(analysis: ChannelAnalysis) -> dict[str, LayerWidth]:
    """The layers that can be named: those that multiply, not the pieces of splits.

    A name that multiplies several times (experts and the convolution that they make) stands for the first width that
    can change.
    """
    found: dict[str, LayerWidth] = {}
    for layer in analysis.layers:
        if not layer.name.endswith("]") and (layer.name not in found or (layer.terms and not found[layer.name].terms)):
            found[layer.name] = layer
    return found


def unknown_layer(name: str, known: Iterable[str], param: str) -> EngineError:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)
    hint = f"; did you mean {', '.join(near)}?" if near else "."
    return EngineError(
        "invalid_request",
        f"The network has no layer {name[:120]!r} whose width can be planned{hint}",
        param=param,
        details={"nearest": near},
    )


def contradiction(message: str, param: str) -> EngineError:
    return EngineError("invalid_request", message, param=param)


def _limits(analysis: ChannelAnalysis, limits: Sequence[LayerLimits]) -> list[tuple[LayerWidth, LayerLimits]]:
    """Each limit with its layer, and again with every other call of a layer of that name and width."""
    known = layers_by_name(analysis)
    found = []
    named: set[str] = set()
    for position, limit in enumerate(limits):
        param = f"/methods/0/layers/{position}"
        if limit.name not in known:
            raise unknown_layer(limit.name, known, f"{param}/name")
        if limit.name in named:
            raise contradiction(f"Layer {limit.name!r} has limits twice.", f"{param}/name")
        named.add(limit.name)
        layer = known[limit.name]
        if limit.min is not None and limit.min > layer.width:
            raise contradiction(
                f"Layer {layer.name!r} has {layer.width} channels and cannot have at least {limit.min}.", f"{param}/min"
            )
        if limit.max is not None and limit.max < layer.width and not layer.terms:
            raise contradiction(
                f"Layer {layer.name!r} must keep its {layer.width} channels, so it cannot have at most {limit.max}.",
                f"{param}/max",
            )
        found += [(one, limit) for one in analysis.layers if one.name == layer.name and one.terms == layer.terms]
    return [(layer, limit) for layer, limit in found if layer.terms]


def _narrow(
    layer: LayerWidth,
    limit: LayerLimits,
    lowest: np.ndarray,
    highest: np.ndarray,
    full: np.ndarray,
    owners: dict[tuple[str, int], str],
) -> None:
    """Apply a limit that bounds single groups; `owners` remembers who bounded a group, for the error."""
    for group, per_component in layer.terms:
        low, high = 0, int(full[group])
        if limit.freeze:
            low = high
        if limit.min is not None:
            low = math.ceil(max(0, limit.min - layer.fixed) / per_component)
        if limit.max is not None and limit.max < layer.width:
            high = (limit.max - layer.fixed) // per_component
        # A layer of no channels is no layer.
        if high < (1 if not layer.fixed else 0) or low > high:
            least = layer.fixed + per_component * (1 if not layer.fixed else 0)
            raise contradiction(
                f"Layer {layer.name!r} has {per_component} channels per step from {least} to {layer.width}; no width "
                f"lies within the limits that it was given.",
                "/methods/0/layers",
            )
        if low > lowest[group]:
            lowest[group], owners["low", group] = low, layer.name
        if high < highest[group]:
            highest[group], owners["high", group] = high, layer.name
        if lowest[group] > highest[group]:
            first, second = owners["low", group], owners["high", group]
            raise contradiction(
                f"Layers {first!r} and {second!r} are coupled and have one width; the limits that they were given "
                "leave none.",
                "/methods/0/layers",
            )


def _raise_lowest(terms: dict[int, int], minimum: int, lowest: np.ndarray, highest: np.ndarray) -> None:
    """What each group must keep even when all others of the layer are at their highest."""
    reach = _sum(terms, highest)
    if reach < minimum:
        raise contradiction(
            f"A layer should keep at least {minimum} channels where the limits of others leave {reach}.",
            "/methods/0/layers",
        )
    for group, count in terms.items():
        others = reach - count * int(highest[group])
        lowest[group] = max(lowest[group], math.ceil((minimum - others) / count))


def _lower_highest(terms: dict[int, int], maximum: int, lowest: np.ndarray, highest: np.ndarray) -> None:
    """What each group can have even when all others of the layer are at their lowest."""
    least = _sum(terms, lowest)
    if least > maximum:
        raise _too_narrow(maximum, least)
    for group, count in terms.items():
        others = least - count * int(lowest[group])
        highest[group] = min(highest[group], (maximum - others) // count)


def _too_narrow(maximum: int, least: int) -> EngineError:
    return contradiction(
        f"A layer should keep at most {maximum} channels where floors and limits of others hold {least}.",
        "/methods/0/layers",
    )


def _sum(terms: dict[int, int], widths: np.ndarray) -> int:
    return sum(count * int(widths[group]) for group, count in terms.items())


def _row(terms: dict[int, int], groups: int) -> np.ndarray:
    row = np.zeros(groups, dtype=np.int64)
    row[list(terms)] = list(terms.values())
    return row


def _matrix(rows: Sequence[tuple[dict[int, int], int]], groups: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.zeros((len(rows), groups), dtype=np.int64)
    for index, (terms, _) in enumerate(rows):
        matrix[index] = _row(terms, groups)
    return matrix, np.array([bound for _, bound in rows], dtype=np.int64)
