"""Several processes that train one network together: each takes its part of every batch, and all come to the same weights.

Every process draws the same order and the same augmentations for the whole batch and learns from its part of it. Gradients
are averaged by torch's `DistributedDataParallel`, and the statistics of a batch-norm are those of the whole batch, so that
the number of processes changes the weights by no more than rounding. Dropout draws for each process and step by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from core.recovery.judges import Judge
from core.recovery.outputs import OutputScales


class Team:
    """One process of the team: `rank` of `size`. `ALONE` is a team of one, for which nothing is ever sent."""

    def __init__(self, rank: int = 0, size: int = 1, seed: int = 0, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size = rank, size
        self._seed, self._group = seed, group

    def __deepcopy__(self, memo: dict[int, Any]) -> Team:
        return self

    def joined(self, module: nn.Module, device: torch.device, *, some_unused: bool) -> nn.Module:
        """What to call in place of `module`, whose batch-norms are replaced: it averages the gradients of all.

        some_unused: whether there may be parameters that the loss does not reach.
        """
        if self.size == 1:
            return module
        for name, norm in list(module.named_modules()):
            if isinstance(norm, _BatchNorm):
                module.set_submodule(name, SyncedBatchNorm(norm, self))
        # Every process computes the same statistics, so there is nothing to send but gradients.
        buffers = [name for name, _ in module.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, buffers)
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=devices, process_group=self._group, find_unused_parameters=some_unused
        )

    def part(self, count: int) -> slice:
        """The part of a batch of `count` that is this process's."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def begin_step(self, step: int) -> None:
        """Dropout draws from here on as it would at this step of any run with this seed."""
        if self.size > 1:
            # A seed may have 63 bits; generators take 64.
            torch.manual_seed(((self._seed * 1_000_003 + step) * self.size + self.rank) % 2**64)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes of `values`, which is left as it is."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total, group=self._group)
        return total

    def told(self, value: float, device: torch.device) -> float:
        """What the first process has as `value`."""
        if self.size == 1:
            return value
        said = torch.tensor([value], dtype=torch.float64, device=device)
        dist.broadcast(said, 0, group=self._group)
        return float(said)


ALONE = Team()


class TeamJudge(Judge):
    """The first process looks at the network; all hear the figure."""

    def __init__(self, judge: Judge, team: Team, device: torch.device) -> None:
        self._judge, self._team, self._device = judge, team, device
        self.measure, self.scales = judge.measure, judge.scales

    def value(self, network: Any, *, quick: bool = False) -> float:
        own = self._judge.value(network, quick=quick) if self._team.rank == 0 else 0.0
        return self._team.told(own, self._device)

    def no_worse(self, candidate: float, best: float) -> bool:
        return self._judge.no_worse(candidate, best)


class DistantJudge(Judge):
    """What a process that never looks at a network has of the first one's judge."""

    def __init__(self, judge: Judge) -> None:
        self.measure = judge.measure
        self.scales: OutputScales | None = judge.scales.to(torch.device("cpu")) if judge.scales is not None else None
        self._higher = judge.no_worse(1.0, 0.0)

    def value(self, network: Any, *, quick: bool = False) -> float:
        raise RuntimeError("This judge is somewhere else; a TeamJudge says what it says.")

    def no_worse(self, candidate: float, best: float) -> bool:
        return candidate >= best if self._higher else candidate <= best


class SyncedBatchNorm(_BatchNorm):
    """A batch-norm whose statistics in training are those of all processes' parts together; it has its source's tensors.

    torch's own works on GPUs only.
    """

    def __init__(self, source: _BatchNorm, team: Team) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        self.train(source.training)
        self._team = team

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes behind the channels."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        output, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, self._team)
        if self.training and self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * (count / (count - 1)), share)
        return output


class _Normalise(torch.autograd.Function):
    """Ioffe, Szegedy, 2015, over a batch that lies in several processes; in float32, given back in the input's type."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, team: Team
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(input.ndim) if axis != 1]
        values = input.float()
        own_count = float(input.numel() // input.shape[1])
        # The parts may differ in size, so each says its own, and the whole has what the parts give together.
        said = values.new_zeros(team.size, 3, input.shape[1])
        own_mean = values.mean(dim=axes)
        said[team.rank, 0], said[team.rank, 1] = own_count, own_mean
        said[team.rank, 2] = (values - _along(own_mean, values)).square().sum(dim=axes)
        counts, means, squares = team.summed(said).unbind(dim=1)
        count = counts[:, 0].sum()
        mean = (counts * means).sum(dim=0) / count
        variance = (squares + counts * (means - mean).square()).sum(dim=0) / count
        scale = (variance + eps).rsqrt()
        normal = (values - _along(mean, values)) * _along(scale, values)
        output = normal if weight is None else normal * _along(weight.float(), values)
        output = output if bias is None else output + _along(bias.float(), values)
        ctx.save_for_backward(normal, weight, scale)
        ctx.team, ctx.count, ctx.axes = team, count, axes
        ctx.mark_non_differentiable(mean, variance, count)
        return output.to(input.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        normal, weight, scale = ctx.saved_tensors
        given = slope.float()
        own = torch.stack([given.sum(dim=ctx.axes), (given * normal).sum(dim=ctx.axes)])
        plain, along = (ctx.team.summed(own) / ctx.count).unbind()
        found = (given - _along(plain, given) - normal * _along(along, given)) * _along(scale, given)
        if weight is None:
            return found.to(slope.dtype), None, None, None, None
        found = found * _along(weight.float(), given)
        return found.to(slope.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None, None


def _along(values: Tensor, other: Tensor) -> Tensor:
    """One value per channel, shaped to meet [n, C, …]."""
    return values.view(1, -1, *(1,) * (other.ndim - 2))
