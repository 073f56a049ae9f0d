"""A checkpoint as one recovery sees it: its own steps, and only those that began with the same network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from core.checkpoint import Checkpoint, Saved, digest_of
from core.network import Network

_START = "start"


class Steps:
    """name: what the steps' names in the checkpoint begin with. network: what the recovery begins with.

    What is planned from measured times may come out otherwise the second time; then nothing of the first is used.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, network: Network) -> None:
        self._checkpoint = checkpoint
        self._name = name
        self._start = digest_of(network.tensors)

    @property
    def due(self) -> bool:
        return self._checkpoint.due

    def finished(self, step: str) -> Saved | None:
        """The result of a step that need not be done again."""
        found = self._own(self._checkpoint.finished(f"{self._name}/{step}"))
        if found is not None:
            self.went_on(step)
        return found

    def finish(self, step: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._checkpoint.finish(f"{self._name}/{step}", Saved({**values, _START: self._start}, tensors))

    def partial(self, step: str) -> Saved | None:
        """The state in which this step was left; `went_on` is to be called once the step goes on from it."""
        return self._own(self._checkpoint.partial(f"{self._name}/{step}"))

    def went_on(self, step: str, number: int | None = None) -> None:
        """What was left of this step has been put to use."""
        self._checkpoint.use(f"{self._name}/{step}", number)

    def save(self, step: str, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._checkpoint.save(f"{self._name}/{step}", Saved({**values, _START: self._start}, tensors))

    def _own(self, found: Saved | None) -> Saved | None:
        if found is None or found.values.get(_START) != self._start:
            return None
        return Saved({name: value for name, value in found.values.items() if name != _START}, found.tensors)
