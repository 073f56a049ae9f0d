"""Shrinking: channels that nobody reads, and channels that say nothing, are taken out of the network.

    repeat   channels whose every reader has only zeros for them        ── unread
             channels that say the same number for every image          ── folded into their readers, then unread
             the weights that make an unread channel become zero, and with them perhaps the last reader of another
    until nothing changes; then the engine's own surgery removes them, and its masked reference proves it

What is coupled comes from the channel analysis: a channel of a residual stream is one component with everything that
writes to it and reads from it, so it goes when it is dead in every member and stays whole when it is not. Nothing here
changes what the network computes, but for `lossy`: a number that is folded into a reader with padding, whose border
then sees the number where it saw a zero. That is for a network that is trained afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.agreement import relative_error
from core.analysis import ChannelAnalysis, analyse
from core.analysis.trace import storage_key
from core.errors import EngineError
from core.network import Network
from core.penni.constants import Constants, Reader, Readers, Takers, constant_components, shift
from core.recovery.recalibration import Kept
from core.surgery import apply, kept_indices, verify

# Outputs may differ by the rounding of float32 biases that took over a number.
TOLERANCE = 1e-5
_BATCH = 3


@dataclass(frozen=True, eq=False)
class Shrunk:
    """network: without the dead channels. kept: what is left of the tensors that were cut, as indices into those given.

    report: channels removed because nobody read them, because they were zero for every image, because their number was
    folded; and constant ones that stay because a padded reader, or one without a bias, could not take the number over.
    """

    network: Network
    kept: Kept
    report: dict[str, int]

    @property
    def removed(self) -> int:
        return sum(self.report[name] for name in ("unread", "zero", "folded", "lossy"))


def shrink(network: Network, *, lossy: bool = False, seed: int = 0) -> Shrunk:
    """`network` without its dead channels. lossy: fold numbers into padded readers, too.

    Raises EngineError("equivalence_failed") where the result does not compute what the network computed (the padded
    readers of `lossy` aside).
    """
    analysis = analyse(network)
    found = _Search(network, analysis, lossy, seed).run()
    if not found.dead.any():
        return Shrunk(network, {}, found.report)
    keep = ~found.dead
    _require_equal_outputs(network, found.exact, seed)
    folded = network.with_tensors(found.tensors)
    pruned = apply(folded, analysis, keep)
    outcome = verify(folded, analysis, keep, pruned, seed=seed)
    if not outcome.passed:
        raise _failed(outcome.reason, outcome.worst)
    return Shrunk(pruned, kept_indices(analysis, keep), found.report)


def compose(first: Kept, second: Kept) -> Kept:
    """What is left of the tensors after two cuts, as indices into the first's originals."""
    composed = dict(first)
    for name, axes in second.items():
        before = first.get(name, (None,) * len(axes))
        composed[name] = tuple(
            new if old is None else (old if new is None else old[new]) for old, new in zip(before, axes, strict=True)
        )
    return composed


def keep_of(analysis: ChannelAnalysis, kept: Kept) -> np.ndarray:
    """bool per component of the network that `kept` counts in."""
    keep = np.ones(analysis.components, dtype=bool)
    for cut in analysis.slices:
        left = kept.get(cut.tensor, ())
        if cut.axis < len(left) and left[cut.axis] is not None:
            gone = np.ones(len(cut.component), dtype=bool)
            gone[left[cut.axis]] = False
            keep[cut.component[gone & (cut.component >= 0)]] = False
    return keep


@dataclass(frozen=True, eq=False)
class _Found:
    """dead: bool per component. tensors: with numbers folded and dead weights zero. exact: the same before `lossy`."""

    dead: np.ndarray
    tensors: Mapping[str, Tensor]
    exact: Network
    report: dict[str, int]


class _Search:
    def __init__(self, network: Network, analysis: ChannelAnalysis, lossy: bool, seed: int) -> None:
        self._network, self._analysis, self._lossy, self._seed = network, analysis, lossy, seed
        self._readers = Readers.of(network, analysis)
        self._takers = Takers(network)
        self._tensors = dict(network.tensors)
        self._names: dict[object, list[str]] = {}
        for name, tensor in network.tensors.items():
            self._names.setdefault(storage_key(tensor), []).append(name)
        self._free = np.zeros(analysis.components, dtype=bool)
        for group in analysis.groups:
            self._free[group.components] = True
        self._dead = np.zeros(analysis.components, dtype=bool)
        self._why: dict[str, np.ndarray] = {
            name: np.zeros(analysis.components, dtype=bool) for name in ("zero", "folded", "lossy")
        }
        self._contracted = {reader.weight for reader in self._readers.stored}

    def run(self) -> _Found:
        self._settle(lossy=False)
        exact = self._network.with_tensors(self._tensors)
        if self._lossy:
            self._settle(lossy=True)
        stuck = (
            self._free & ~self._dead & constant_components(self._network.with_tensors(self._tensors), self._analysis)
        )
        spared = self._spare()
        counts = {name: int((marked & self._dead).sum()) for name, marked in self._why.items()}
        report = {
            "unread": int(self._dead.sum()) - sum(counts.values()),
            **counts,
            "constant_kept": int((stuck & ~spared).sum()),
        }
        return _Found(self._dead, self._tensors, exact, report)

    def _settle(self, *, lossy: bool) -> None:
        """Until nothing changes."""
        while True:
            unread = self._free & self._readers.unread(self._tensors)
            new = unread & ~self._dead
            if new.any():
                self._dead |= new
                self._silence(new)
                continue
            if not self._fold(lossy):
                return

    def _silence(self, components: np.ndarray) -> None:
        """Zero every weight that makes these components."""
        for cut in self._analysis.slices:
            if cut.tensor in self._contracted:
                gone = np.flatnonzero(components[cut.component] & (cut.component >= 0))
                if len(gone):
                    self._zero(cut.tensor, cut.axis, gone)

    def _zero(self, name: str, axis: int, positions: np.ndarray) -> None:
        self._put(name, self._tensors[name].detach().index_fill(axis, torch.from_numpy(positions), 0))

    def _put(self, name: str, tensor: Tensor) -> None:
        """Under every name of the same storage."""
        for one in self._names[storage_key(self._network.tensors[name])]:
            self._tensors[one] = tensor

    def _fold(self, lossy: bool) -> bool:
        """Hand what constant channels say to all of their readers; whether there was any."""
        network = self._network.with_tensors(self._tensors)
        constant = self._free & ~self._dead & constant_components(network, self._analysis)
        if not constant.any():
            return False
        values = Constants.of(network, self._readers, constant, self._seed).values
        takes, zero = constant.copy(), constant.copy()
        padded = np.zeros_like(constant)
        for reader in self._readers.stored:
            used = reader.used(self._tensors) & constant[reader.components]
            if not used.any():
                continue
            said = values.get(reader, np.full(len(reader.components), np.nan))
            numbered = used & (said != 0)
            zero[reader.components[numbered]] = False
            unable = np.isnan(said) | (self._takers.place(reader) is None)
            if reader.padded:
                padded[reader.components[numbered]] = True
                unable = unable | (not lossy)
            takes[reader.components[numbered & unable]] = False
        # A component that is read in several places goes only where all of them can take it.
        takes &= ~self._readers.others
        if not takes.any():
            return False
        for reader in self._readers.stored:
            self._hand_over(reader, takes, values)
        self._why["zero"] |= takes & zero
        self._why["lossy"] |= takes & ~zero & padded
        self._why["folded"] |= takes & ~zero & ~padded
        return True

    def _hand_over(self, reader: Reader, takes: np.ndarray, values: Mapping[Reader, np.ndarray]) -> None:
        places = np.flatnonzero(takes[reader.components] & reader.used(self._tensors))
        if not len(places):
            return
        numbers = values[reader][places]
        if numbers.any():
            name, sign = self._takers.place(reader)
            moved = shift(self._tensors[reader.weight], reader.axis, places, numbers)
            stored = self._tensors[name]
            self._put(name, (stored.double() + sign * moved).to(stored.dtype))
        self._zero(reader.weight, reader.axis, places)

    def _spare(self) -> np.ndarray:
        """A layer keeps one channel, dead or not: bool per component that was spared."""
        spared = np.zeros_like(self._dead)
        for layer in self._analysis.layers:
            if layer.fixed or not layer.terms:
                continue
            members = np.concatenate([self._analysis.groups[group].components for group, _ in layer.terms])
            if self._dead[members].all():
                self._dead[members[0]] = False
                spared[members[0]] = True
        return spared


@torch.no_grad()
def _require_equal_outputs(network: Network, exact: Network, seed: int) -> None:
    inputs = network.random_inputs(_BATCH, seed + 1, torch.float64)
    wanted, found = (one.to(torch.float64).run(*inputs) for one in (network, exact))
    for spec, one, other in zip(network.outputs, wanted, found, strict=True):
        error = relative_error(one, other)
        if error > TOLERANCE:
            raise _failed(f"relative error {error:.1e} at the output {spec.name}", spec.name)


def _failed(reason: str, layer: str | None) -> EngineError:
    return EngineError(
        "equivalence_failed",
        f"The network without its dead channels does not agree with the one that has them ({reason}), so it is not "
        "delivered. This is a fault of the service, not of the checkpoint; please report it with the model's "
        "architecture.",
        details={"layer": layer, "problem": reason, "insensitive": []},
    )
