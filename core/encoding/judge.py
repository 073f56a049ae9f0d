"""What an encoding costs: validation accuracy with labels, else the outputs' distance from the original's."""

from __future__ import annotations

import torch

from core.network import Network
from core.recovery import ImageDataset, accuracy
from core.recovery.evaluation import predict

_HELD_OUT_EXAMPLES = 2048
_NOISE_EXAMPLES = 16
# A stream of its own: the sensitivities saw other noise.
_NOISE_SEED = 7_001


class Judge:
    """Scores networks on examples that nothing was fitted to. measure: what its scores are, a key of the report."""

    def __init__(self, original: Network, network: Network, dataset: ImageDataset | None, device: torch.device) -> None:
        """network: what the outputs are compared with where there are no images; noise tells nothing of the original."""
        self.labelled = dataset is not None and dataset.labelled
        self.measure = "validation_accuracy" if self.labelled else "output_error"
        self._dataset, self._device = dataset, device
        if dataset is None:
            self._noise = network.random_inputs(_NOISE_EXAMPLES, _NOISE_SEED)
            self._wanted = network.run(*self._noise)
        elif not self.labelled:
            self._images = dataset.val.sample(_HELD_OUT_EXAMPLES).images
            self._wanted = (predict(original, self._images, dataset, device=device),)

    def score(self, network: Network) -> float:
        """A fraction: of right answers, or the relative distance of the outputs."""
        if self.labelled:
            return accuracy(network, self._dataset.val, self._dataset, device=self._device)
        if self._dataset is None:
            outputs = network.run(*self._noise)
        else:
            outputs = (predict(network, self._images, self._dataset, device=self._device),)
        pairs = list(zip(outputs, self._wanted, strict=True))
        distance = sum(float((got - wanted).double().square().sum()) for got, wanted in pairs)
        energy = sum(float(wanted.double().square().sum()) for _, wanted in pairs)
        return (distance / max(energy, 1e-30)) ** 0.5

    def worse(self, score: float, other: float) -> bool:
        """Whether the first score is worse than the second; one that is no number always is."""
        return not (score >= other if self.labelled else score <= other)

    def test_accuracy(self, network: Network) -> float:
        return accuracy(network, self._dataset.test, self._dataset, device=self._device)
