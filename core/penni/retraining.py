"""The published way to factors that bear pruning: both trained in turn, the coefficients under an L1 penalty.

    minimise  cross-entropy + γ · Σ |coefficients|

Batch-norms, biases and the classifier always train; of the two factors one trains while the other rests, and every
`interval` epochs they change places. Each has an optimiser of its own, so that neither momentum nor weight decay moves
the one that rests. After each step of the kernels they are scaled to unit norm again and their coefficients by the
inverse: otherwise the penalty could be dodged by small coefficients of large kernels.

This is the paper's training as its experiments ran it, on augmentations that the original bears; it takes labels and
many epochs. The default of this project fits in closed form instead, and trains everything together afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import EngineError
from core.module_form import to_module, with_trained
from core.network import Network
from core.penni.rewriting import SharedLayer
from core.progress import Progress, ProgressEvent, silent
from core.recovery.augmentation import choose_augmentation
from core.recovery.dataset import ImageDataset
from core.recovery.optimizers import MOMENTUM, parameter_groups
from core.recovery.outputs import as_outputs
from core.recovery.training import reproducible

# The rate falls to a tenth after these shares of the epochs.
_MILESTONES = (0.5, 0.75)
_LEAST_BATCHES = 4


@dataclass(frozen=True)
class Alternation:
    """The published values. interval: epochs after which the factors change places. penalty: γ of the L1 norm."""

    epochs: int = 100
    interval: int = 2
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    penalty: float = 1e-4
    batch_size: int = 128

    def trains_coefficients(self, epoch: int) -> bool:
        """In the epoch of this number, from 0: coefficients first, and the other factor from epoch interval − 1."""
        return ((epoch + 1) // self.interval) % 2 == 0

    def rate(self, epoch: int) -> float:
        return self.learning_rate * 0.1 ** sum(epoch >= share * self.epochs for share in _MILESTONES)


@dataclass(frozen=True, eq=False)
class Alternating:
    """A `Train` of `core.penni.program`. dataset: labelled, prepared for `original`."""

    original: Network
    dataset: ImageDataset
    recipe: Alternation
    seed: int = 0
    device: torch.device | str = "cpu"
    progress: Progress = silent

    def __call__(self, network: Network, layers: Iterable[SharedLayer]) -> Network:
        """The trained form. Raises EngineError where there are no labels, or where the loss stops being a number."""
        if not self.dataset.labelled:
            raise EngineError(
                "dataset_invalid",
                "The published recipe of penni trains by labels. Give a labelled dataset, or leave out the method's "
                "recipe.",
                param="/methods/0/recipe",
            )
        device = torch.device(self.device)
        with reproducible(device, self.seed):
            return self._trained(network, list(layers), device)

    def _trained(self, network: Network, layers: Sequence[SharedLayer], device: torch.device) -> Network:
        augmentation, _ = choose_augmentation(self.original, self.dataset, seed=self.seed, device=device)
        module = to_module(network).to(device).train()
        turns = _Turns(module, [_Factors.of(layer, module, device) for layer in layers], self.recipe)
        train = self.dataset.train.to(device)
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in range(self.recipe.epochs):
            name = "coefficients" if turns.begin(epoch) else "shared kernels"
            message = f"Training {name}, epoch {epoch + 1} of {self.recipe.epochs}"
            self.progress(ProgressEvent("apply", message=message))
            for rows in self._batches(len(train), generator):
                images = augmentation(train.images[rows.to(device)], generator)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    outputs = as_outputs(module(self.dataset.prepare(images)))
                loss = F.cross_entropy(outputs[0].float(), train.labels[rows.to(device)]) + turns.penalty
                if not bool(loss.detach().isfinite()):
                    raise EngineError(
                        "invalid_request",
                        f"Training shared kernels diverged in epoch {epoch + 1}. Leave out the method's recipe.",
                        param="/methods/0/recipe",
                    )
                turns.learn(loss)
        return with_trained(network, module.eval())

    def _batches(self, examples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Rows of full batches, in an order of their own each epoch; small sets make smaller ones."""
        size = max(1, min(self.recipe.batch_size, examples // _LEAST_BATCHES))
        yield from torch.randperm(examples, generator=generator)[: examples - examples % size].split(size)


class _Turns:
    """What trains in which epoch: one of the two factors, and always everything else."""

    def __init__(self, module: nn.Module, factors: Sequence[_Factors], recipe: Alternation) -> None:
        self._recipe, self._factors = recipe, factors
        self._coefficients, self._bases = [one.coefficients for one in factors], [one.basis for one in factors]
        own = {id(parameter) for parameter in (*self._coefficients, *self._bases)}
        self._always = self._optimizer([parameter for parameter in module.parameters() if id(parameter) not in own])
        self._of_coefficients, self._of_bases = self._optimizer(self._coefficients), self._optimizer(self._bases)
        self.begin(0)

    def begin(self, epoch: int) -> bool:
        """Whose turn it is: that of the coefficients, or of the kernels."""
        turn = self._turn = self._recipe.trains_coefficients(epoch)
        for parameters, trains in ((self._coefficients, turn), (self._bases, not turn)):
            for parameter in parameters:
                parameter.requires_grad_(trains)
                parameter.grad = None
        self._optimizers = (self._of_coefficients if turn else self._of_bases, self._always)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._recipe.rate(epoch)
        return turn

    @property
    def penalty(self) -> Tensor | float:
        if not self._turn:
            return 0.0
        return self._recipe.penalty * sum(one.abs().sum() for one in self._coefficients)

    def learn(self, loss: Tensor) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        if not self._turn:
            for one in self._factors:
                one.normalise()

    def _optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.SGD:
        groups = parameter_groups(parameters, self._recipe.weight_decay)
        return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True)


@dataclass(frozen=True, eq=False)
class _Factors:
    """The parameters of one layer. coefficients: [O, columns, 1, …]; basis: [d, 1, …]; kernels: of each column."""

    coefficients: nn.Parameter
    basis: nn.Parameter
    kernels: Tensor

    @staticmethod
    def of(layer: SharedLayer, module: nn.Module, device: torch.device) -> _Factors:
        path = layer.site.path
        return _Factors(
            module.get_parameter(f"{path}.coefficients"),
            module.get_parameter(f"{path}.basis"),
            layer.kernels.to(device),
        )

    @torch.no_grad()
    def normalise(self) -> None:
        """Kernels of unit norm, and the same weight."""
        norms = self.basis.flatten(1).norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)
        self.basis.div_(norms.view(-1, *[1] * (self.basis.ndim - 1)))
        self.coefficients.mul_(norms[self.kernels].view(1, -1, *[1] * (self.coefficients.ndim - 2)))
