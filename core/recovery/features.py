"""What the layers in the middle say, as a target for the same layers of the network that imitates the original.

The outputs alone say little to the first layers, as their gradient has come through everything that pruning bent. The
original is known in every layer, though (Romero et al., "FitNets", 2015), and a pruned network needs no adapter to be
compared with it: each channel that is left has its counterpart. A layer's loss is the squared difference of its outputs,
in front of normalisation and activation, as a share of the original's mean square, so that every layer counts the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from core.module_form import Layer, layers
from core.network import Network
from core.recovery.recalibration import Kept

# What both networks say in so many layers is held through a step; the layers between them are held to it by these.
MOST_LAYERS = 16
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Features:
    """rows: per compared layer, by its module's path, the channels of the original that are left (None: all of them)."""

    rows: Mapping[str, Tensor | None]

    @staticmethod
    def of(network: Network, original: Network, kept: Kept, device: torch.device) -> Features:
        """Convolutions that both networks call once, at most `MOST_LAYERS`, evenly from the first to the last of them.

        kept: `core.surgery.kept_indices`.
        """
        own, whole = _convolutions(network), _convolutions(original)
        rows: dict[str, Tensor | None] = {}
        for path in (path for path in own if path in whole):
            (chosen, *_) = kept.get(f"{path}.weight", (None,))
            left = whole[path] if chosen is None else len(chosen)
            if left == own[path]:
                rows[path] = None if chosen is None else torch.from_numpy(chosen).to(device)
        taken = np.unique(np.linspace(0, len(rows) - 1, min(MOST_LAYERS, len(rows))).round().astype(int))
        paths = list(rows)
        return Features({paths[at]: rows[paths[at]] for at in taken})

    def to(self, device: torch.device) -> Features:
        return Features({path: None if rows is None else rows.to(device) for path, rows in self.rows.items()})

    @contextmanager
    def watch(self, module: nn.Module) -> Iterator[dict[str, Tensor]]:
        """What the layers of a `to_module` give while this is open, by path."""
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for path in self.rows:

                def keep(_: nn.Module, __: object, output: Tensor, path: str = path) -> None:
                    found[path] = output

                stack.callback(module.get_submodule(path).register_forward_hook(keep).remove)
            yield found

    def loss(self, found: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
        """Mean over the layers of their relative squared difference."""
        shares = []
        for path, rows in self.rows.items():
            wanted = target[path].float()
            wanted = wanted if rows is None else wanted.index_select(1, rows)
            power = wanted.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
            shares.append((found[path].float() - wanted).square().mean() / power)
        return torch.stack(shares).mean()


NO_FEATURES = Features({})


def _convolutions(network: Network) -> dict[str, int]:
    """Output channels of every convolution that is a module and called once, by path, in the order of execution."""
    calls: dict[str, list[Layer]] = {}
    for layer in layers(network).values():
        calls.setdefault(layer.path, []).append(layer)
    return {
        path: found[0].arguments["out_channels"]
        for path, found in calls.items()
        if len(found) == 1 and found[0].kind in _CONVOLUTIONS
    }
